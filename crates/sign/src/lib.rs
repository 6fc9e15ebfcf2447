//! Standard Webhooks signatures.
//!
//! ```text
//! secrets ──parse──► Keys ──sign (id, timestamp, body)──► `webhook-signature` ◄──verify── a receiver
//! ```
//!
//! The signed content is `id.timestamp.body`. A secret is one of three, told apart by its prefix:
//! `whsec_` and base64 (HMAC-SHA256 with those bytes, `v1,…`), `whsk_` and base64 (an ed25519 private
//! key: 32 bytes of seed, or 64 with the public key behind it, `v1a,…`), any other text (HMAC-SHA256
//! with the text's bytes). White space around it is not part of it. Base64 is read in both alphabets,
//! padded or not, as the standard's libraries between them write it. What holds one of the standard's
//! prefixes in another place was meant as a key and is none: it is refused, for signed as plain text no
//! library would verify it.
//!
//! Source: the Standard Webhooks specification, version 1.0.0, "Signature scheme".

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::Serialize;
use sha2::Sha256;

use walhook_core::endpoint::Secret;

/// A secret cannot be used. Says what kind of thing is wrong, never the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// There is nothing to sign with.
    #[error("the endpoint has no secret")]
    NoSecret,
    /// The secret is the empty text.
    #[error("a secret is empty")]
    Empty,
    /// What follows the prefix is not base64.
    #[error("a secret begins with {0} but what follows is not base64")]
    NotBase64(&'static str),
    /// One of the standard's prefixes stands in it, but not in front.
    #[error("a secret holds whsec_, whsk_ or whpk_ but does not begin with whsec_ or whsk_")]
    Misplaced,
    /// It is a key to verify with.
    #[error("a secret is a public key (whpk_); the private one begins with whsk_")]
    PublicKey,
    /// The private key has a length that no ed25519 key has.
    #[error("a secret begins with whsk_ but does not hold an ed25519 key of 32 or 64 bytes")]
    NotEd25519,
}

enum Key {
    /// Of a secret of so many bytes, ready to take what is signed.
    Symmetric(Box<Hmac<Sha256>>, usize),
    Ed25519(Box<Ed25519KeyPair>),
}

/// The secrets of one endpoint, read once to sign many requests. Never printed.
pub struct Keys(Vec<Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

const SYMMETRIC: &str = "whsec_";
const ASYMMETRIC: &str = "whsk_";
const PUBLIC: &str = "whpk_";

/// Base64 as it is met: with or without padding, also where the last character holds spare bits.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A secret with fewer bytes is weak.
///
/// Source: the Standard Webhooks specification, version 1.0.0, "Signature scheme": 24 to 64 bytes.
pub const STRONG_BYTES: usize = 24;

/// Bytes that one request may have signed at once: with more, for all of its secrets together, signing
/// takes so long (a millisecond) that it must not keep others waiting.
const CHEAP_BYTES: usize = 256 << 10;

/// What is weak about a secret that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weakness {
    /// It is plain text, which the standard's libraries do not take for a secret.
    Plain,
    /// It has fewer than [`STRONG_BYTES`] bytes.
    Short,
}

/// Whether the secret can be signed with; and what is weak about it, where something is.
///
/// # Errors
/// [`SignError`]
pub fn judge(secret: &Secret) -> Result<Option<Weakness>, SignError> {
    Ok(match Key::parse(secret)? {
        Key::Symmetric(_, bytes) if bytes < STRONG_BYTES => Some(Weakness::Short),
        Key::Symmetric(..) if !secret.expose().trim().starts_with(SYMMETRIC) => {
            Some(Weakness::Plain)
        }
        Key::Symmetric(..) | Key::Ed25519(_) => None,
    })
}

/// Whether signing a body of so many bytes with so many secrets takes long.
#[must_use]
pub fn takes_long(body_bytes: usize, secrets: usize) -> bool {
    body_bytes.saturating_mul(secrets) > CHEAP_BYTES
}

impl Key {
    fn parse(secret: &Secret) -> Result<Self, SignError> {
        let text = secret.expose().trim();
        let marked = |text: &str| {
            let text = text.to_ascii_lowercase();
            [SYMMETRIC, ASYMMETRIC, PUBLIC].iter().any(|prefix| text.contains(prefix))
        };
        let decode = |prefix, encoded: &str| {
            let standard = encoded.replace('-', "+").replace('_', "/");
            let decoded = LENIENT.decode(standard).ok().filter(|_| !marked(encoded));
            decoded.ok_or(SignError::NotBase64(prefix))
        };
        if let Some(encoded) = text.strip_prefix(SYMMETRIC) {
            let key = decode(SYMMETRIC, encoded)?;
            return Self::symmetric(&key);
        }
        if let Some(encoded) = text.strip_prefix(ASYMMETRIC) {
            let bytes = decode(ASYMMETRIC, encoded)?;
            let seed = bytes.get(..32).filter(|_| matches!(bytes.len(), 32 | 64));
            let pair = seed.and_then(|seed| Ed25519KeyPair::from_seed_unchecked(seed).ok());
            return pair.map(|pair| Self::Ed25519(Box::new(pair))).ok_or(SignError::NotEd25519);
        }
        if text.is_empty() {
            return Err(SignError::Empty);
        }
        if text.starts_with(PUBLIC) {
            return Err(SignError::PublicKey);
        }
        if marked(text) {
            return Err(SignError::Misplaced);
        }
        Self::symmetric(text.as_bytes())
    }

    fn symmetric(key: &[u8]) -> Result<Self, SignError> {
        let mac = Hmac::new_from_slice(key).ok().filter(|_| !key.is_empty());
        mac.map(|mac| Self::Symmetric(Box::new(mac), key.len())).ok_or(SignError::Empty)
    }

    /// Appends the signature of the content that these parts are.
    fn sign(&self, content: &[&[u8]], to: &mut String) {
        match self {
            Self::Symmetric(mac, _) => {
                to.push_str("v1,");
                STANDARD.encode_string(tag(mac, content).finalize().into_bytes(), to);
            }
            Self::Ed25519(pair) => {
                to.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&content.concat()), to);
            }
        }
    }

    /// Compares in constant time.
    fn verifies(&self, content: &[&[u8]], signature: &str) -> bool {
        let Some((version, encoded)) = signature.split_once(',') else { return false };
        let Ok(given) = STANDARD.decode(encoded) else { return false };
        match self {
            Self::Symmetric(mac, _) => {
                version == "v1" && tag(mac, content).verify_slice(&given).is_ok()
            }
            Self::Ed25519(pair) => {
                let public = UnparsedPublicKey::new(&ED25519, pair.public_key());
                version == "v1a" && public.verify(&content.concat(), &given).is_ok()
            }
        }
    }
}

fn tag(mac: &Hmac<Sha256>, content: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = mac.clone();
    for part in content {
        mac.update(part);
    }
    mac
}

impl Keys {
    /// Reads them all.
    ///
    /// # Errors
    /// [`SignError`] for the first secret that cannot be used, and when there is none.
    pub fn parse(secrets: &[Secret]) -> Result<Self, SignError> {
        let keys = secrets.iter().map(Key::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(SignError::NoSecret) } else { Ok(Self(keys)) }
    }

    /// How many there are: one or more.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is one at least")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of `webhook-signature`: one signature for each secret, in their order, between spaces.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &[u8]) -> String {
        let timestamp = timestamp_s.to_string();
        let content = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        // An HMAC's is 47 characters long, and a space; one of ed25519 longer.
        let mut signatures = String::with_capacity(48 * self.0.len());
        for key in &self.0 {
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            key.sign(&content, &mut signatures);
        }
        signatures
    }
}

/// As [`Keys::sign`], of secrets that sign one request only.
///
/// # Errors
/// [`SignError`] for the first secret that cannot be used, and when there is none.
pub fn sign(
    id: &str,
    timestamp_s: i64,
    body: &[u8],
    secrets: &[Secret],
) -> Result<String, SignError> {
    Ok(Keys::parse(secrets)?.sign(id, timestamp_s, body))
}

/// Whether any of the signatures in `header` was made with `secret`.
///
/// The age of `timestamp_s` is the caller's to judge.
#[must_use]
pub fn verify(id: &str, timestamp_s: i64, body: &[u8], header: &str, secret: &Secret) -> bool {
    let timestamp = timestamp_s.to_string();
    let content = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let Ok(key) = Key::parse(secret) else { return false };
    header.split(' ').any(|signature| key.verifies(&content, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification and its reference libraries.
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn signature_is_that_of_the_specifications_example() {
        let signed = sign(ID, TIMESTAMP, BODY, &[Secret::new(SECRET)]);
        assert_eq!(signed.as_deref(), Ok(SIGNATURE));
    }

    #[test]
    fn every_secret_signs_and_any_of_them_verifies() {
        let seed = [7; 32];
        let private = format!("whsk_{}", STANDARD.encode(seed));
        let secrets = [SECRET, "plain text", &private].map(Secret::new);
        let header = sign(ID, TIMESTAMP, BODY, &secrets).unwrap();
        assert_eq!(header.split(' ').count(), 3);
        for secret in &secrets {
            assert!(verify(ID, TIMESTAMP, BODY, &header, secret));
            assert!(!verify(ID, TIMESTAMP + 1, BODY, &header, secret));
            assert!(!verify("other", TIMESTAMP, BODY, &header, secret));
            assert!(!verify(ID, TIMESTAMP, b"other", &header, secret));
            assert!(!verify(ID, TIMESTAMP, BODY, "v1,AAAA v1a,AAAA nonsense", secret));
        }
        assert!(!verify(ID, TIMESTAMP, BODY, &header, &Secret::new("another")));
    }

    #[test]
    fn ed25519_key_may_carry_its_public_key() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let both = [&[7; 32][..], pair.public_key().as_ref()].concat();
        let key = |bytes: &[u8]| Secret::new(format!("whsk_{}", STANDARD.encode(bytes)));
        let header = sign(ID, TIMESTAMP, BODY, &[key(&both)]).unwrap();
        assert!(verify(ID, TIMESTAMP, BODY, &header, &key(&[7; 32])));
    }

    #[test]
    fn secret_signs_alike_in_every_form_of_its_base64() {
        let key = [251, 255, 254, 62, 63, 251, 239, 190, 7, 7];
        let standard = STANDARD.encode(key);
        let bare = standard.trim_end_matches('=');
        let url_safe = standard.replace('+', "-").replace('/', "_");
        assert!(standard.ends_with('=') && url_safe.contains('-') && url_safe.contains('_'));
        let signed = |text: String| {
            sign(ID, TIMESTAMP, BODY, &[Secret::new(text)]).map_err(|e| e.to_string())
        };
        let expected = signed(format!("whsec_{standard}"));
        assert!(expected.is_ok());
        for text in [
            format!("whsec_{bare}"),
            format!("whsec_{url_safe}"),
            format!("whsec_{}", url_safe.trim_end_matches('=')),
            format!("whsec_{standard}\n"),
            format!(" \twhsec_{standard}\r\n "),
        ] {
            assert_eq!(signed(text.clone()), expected, "{text:?}");
        }
        let seed = |text: &str| signed(format!("whsk_{text}"));
        let encoded = STANDARD.encode([251; 32]);
        assert_eq!(seed(&encoded), seed(encoded.trim_end_matches('=')));
        assert_eq!(seed(&encoded), seed(&encoded.replace('+', "-").replace('/', "_")));
        assert_eq!(signed("hush".into()), signed(" hush\n".into()), "plain text too");
    }

    #[test]
    fn weak_secrets_are_told_apart() {
        let judged = |text: &str| judge(&Secret::new(text));
        assert_eq!(judged(SECRET), Ok(None));
        assert_eq!(judged(&format!("whsk_{}", STANDARD.encode([7; 32]))), Ok(None));
        assert_eq!(judged("whsec_aHVzaA"), Ok(Some(Weakness::Short)));
        assert_eq!(judged("hush"), Ok(Some(Weakness::Short)));
        assert_eq!(judged("a passphrase of some length"), Ok(Some(Weakness::Plain)));
    }

    #[test]
    fn signing_takes_long_by_bytes_times_secrets() {
        assert!(!takes_long(64 << 10, 1) && !takes_long(2_000, 10));
        assert!(takes_long(1 << 20, 1) && takes_long(64 << 10, 10));
    }

    #[test]
    fn malformed_secret_is_refused_without_being_named() {
        for (secret, expected) in [
            ("", SignError::Empty),
            ("whsec_", SignError::Empty),
            ("whsec_hush!", SignError::NotBase64("whsec_")),
            ("whsk_hush!", SignError::NotBase64("whsk_")),
            ("whsk_aHVzaA==", SignError::NotEd25519),
            ("  \n", SignError::Empty),
            ("whsec_hu sh", SignError::NotBase64("whsec_")),
            ("whsec_whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SignError::NotBase64("whsec_")),
            ("v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SignError::Misplaced),
            ("\"whsec_hush\"", SignError::Misplaced),
            ("WHSEC_hush", SignError::Misplaced),
            ("secret=whsk_hush", SignError::Misplaced),
            ("whpk_hush", SignError::PublicKey),
        ] {
            let secret = Secret::new(secret);
            let error = sign(ID, TIMESTAMP, BODY, std::slice::from_ref(&secret)).unwrap_err();
            assert_eq!(error, expected);
            assert_eq!(judge(&secret), Err(expected));
            assert!(!error.to_string().contains("hush"));
        }
        assert_eq!(sign(ID, TIMESTAMP, BODY, &[]), Err(SignError::NoSecret));
    }
}
