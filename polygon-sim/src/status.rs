//! The vendor's status objects.
//!
//! The texts were measured on the live service unless marked otherwise. Every capture has the key
//! order `ev, status, message`.

pub(crate) const CONNECTED: (&str, &str) = ("connected", "Connected Successfully");
pub(crate) const AUTH_SUCCESS: (&str, &str) = ("auth_success", "authenticated");
pub(crate) const AUTH_FAILED: (&str, &str) = ("auth_failed", "authentication failed");
pub(crate) const PLAN_LACKS_MARKET: (&str, &str) = (
    "auth_failed",
    "Your plan doesn't include websocket access. Visit https://polygon.io/pricing to upgrade.",
);
/// The status is documented. The text is as one user reported it.
pub(crate) const AUTH_TIMEOUT: (&str, &str) =
    ("auth_timeout", "No authentication request received.");
/// The status is documented, but its text is published nowhere. This text is the simulator's own.
pub(crate) const AUTH_REQUIRED: (&str, &str) = ("auth_required", "authentication required");
pub(crate) const NOT_AUTHORIZED: (&str, &str) = ("error", "not authorized");
/// Measured in 2026-09. Names no item.
pub(crate) const CONTRACT_LIMIT: (&str, &str) = (
    "error",
    "Subscription limit reached for feed. Please remove some subscriptions and try again.",
);
pub(crate) const MAX_CONNECTIONS: (&str, &str) = (
    "max_connections",
    "Maximum number of websocket connections exceeded. You have reached the connection limit for \
     your account. Please contact support at https://polygon.io/contact to increase your limit.",
);
/// The vendor's answer to a malformed command is unknown. This one is the simulator's own.
pub(crate) const MALFORMED: (&str, &str) = ("error", "invalid request");

/// One status object.
pub(crate) fn object((status, message): (&str, &str)) -> String {
    let message = serde_json::Value::from(message);
    format!("{{\"ev\":\"status\",\"status\":\"{status}\",\"message\":{message}}}")
}

/// A frame that holds this one status.
pub(crate) fn frame(status: (&str, &str)) -> String {
    format!("[{}]", object(status))
}
