//! Certificates from files in PEM form.

use std::path::Path;

use rustls::pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};

use super::error::ConfigError;

/// Reads certificates from a file in PEM form.
///
/// # Errors
///
/// The file cannot be read, is damaged, or holds no certificate.
pub fn certificates(
    variable: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let invalid = |why: String| {
        let expected = format!("expected a file of certificates in PEM form: {why}");
        ConfigError::invalid(variable, path.display(), expected)
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| invalid(pem_fault(error)))?;
    if certificates.is_empty() {
        return Err(invalid(pem_fault(pem::Error::NoItemsFound)));
    }
    Ok(certificates)
}

/// Describes the fault of a file in PEM form without showing its content. The parser's own errors
/// show lines of the file, which may be part of a private key.
pub fn pem_fault(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds none".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}
