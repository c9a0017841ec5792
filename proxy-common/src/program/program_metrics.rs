//! What never changes in a running program but may differ from the next one, for `/metrics`: its
//! version, and how long its certificate is valid.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    metrics::encode_gauge,
    transport::Certificate,
    version::{COMMIT, VERSION},
};

/// The version of the program, and the end of its certificate.
pub(super) struct ProgramMetrics {
    /// The certificate of the data port, if it speaks TLS.
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl fmt::Debug for ProgramMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramMetrics").finish_non_exhaustive()
    }
}

impl Collector for ProgramMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let help = "The version and the commit of the program";
        let mut info = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", VERSION), ("commit", COMMIT)];
        ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
        if let Some(expiry) = self.certificate.as_ref().and_then(|one| one.expiry()) {
            let (name, help) = ("tls_certificate_expiry_timestamp", "End of the certificate");
            encode_gauge(encoder, name, help, Some(&Unit::Seconds), expiry.as_secs() as i64)?;
        }
        Ok(())
    }
}
