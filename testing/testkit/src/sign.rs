//! Standard Webhooks signatures as a receiver checks them, apart from the product's own code.
//!
//! Source: the Standard Webhooks specification, version 1.0.0, "Signature scheme".

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What a request says of its signature, with what is signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The path that it came to.
    pub path: &'a str,
    /// `webhook-id`
    pub id: &'a str,
    /// `webhook-timestamp`, in seconds since 1970.
    pub timestamp: i64,
    /// `webhook-signature`: one or more, separated by spaces.
    pub signatures: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// Whether a request's signature is right.
pub type Verifier = Arc<dyn Fn(&Signed<'_>) -> bool + Send + Sync>;

impl Signed<'_> {
    /// Whether one of the signatures is HMAC-SHA256 by this secret: `whsec_` and base64, or plain text.
    #[must_use]
    pub fn fits(&self, secret: &str) -> bool {
        let Some(mac) = mac(secret, self.id, self.timestamp, self.body) else { return false };
        self.signatures
            .split(' ')
            .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
            .any(|signature| mac.clone().verify_slice(&signature).is_ok())
    }
}

/// Takes what is signed with one of these.
#[must_use]
pub fn with_one_of(secrets: Vec<String>) -> Verifier {
    Arc::new(move |signed| secrets.iter().any(|secret| signed.fits(secret)))
}

/// The signature by a secret, as `webhook-signature` holds it; empty for one that is none.
#[must_use]
pub fn sign(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mac = mac(secret, id, timestamp, body);
    mac.map_or_else(String::new, |mac| {
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    })
}

fn mac(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Option<Hmac<Sha256>> {
    let key = match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok()?,
        None => secret.as_bytes().to_vec(),
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    Some(mac)
}

#[test]
fn signature_is_that_of_the_specification() {
    // The example of its section "Signature scheme".
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let (id, timestamp) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
    let body = br#"{"test": 2432232314}"#;
    let signature = sign(secret, id, timestamp, body);
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    let signatures = format!("v1,AAAA {signature}");
    let signed = Signed { path: "/", id, timestamp, signatures: &signatures, body };
    assert!(signed.fits(secret) && !signed.fits("whsec_AAAA") && !signed.fits("another"));
}
