//! docs/NATS.md and the deployments with NATS.
