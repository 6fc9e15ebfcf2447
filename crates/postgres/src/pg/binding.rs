//! Channel binding: what ties a SCRAM exchange to the certificate that the server presented.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// `[0]`, constructed: the hash in the parameters of RSASSA-PSS.
const CONTEXT_0: u8 = 0xa0;

/// `rsassaPss`, whose hash stands in its parameters.
const RSASSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Signature algorithms and plain hashes, by their object identifiers' content.
///
/// MD5 and SHA-1 stand for SHA-256, as the RFC says.
///
/// Source: RFC 3279, RFC 4055, RFC 5758.
const HASHES: [(&[u8], Hash); 17] = [
    // md5, sha1, sha224, sha256, sha384 and sha512 with RSA.
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], Hash::Sha256),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], Hash::Sha256),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0e], Hash::Sha224),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b], Hash::Sha256),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c], Hash::Sha384),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d], Hash::Sha512),
    // ECDSA with sha1, sha224, sha256, sha384 and sha512.
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], Hash::Sha256),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01], Hash::Sha224),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02], Hash::Sha256),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], Hash::Sha384),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04], Hash::Sha512),
    // md5, sha1, sha224, sha256, sha384 and sha512 alone.
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05], Hash::Sha256),
    (&[0x2b, 0x0e, 0x03, 0x02, 0x1a], Hash::Sha256),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x04], Hash::Sha224),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], Hash::Sha256),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02], Hash::Sha384),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03], Hash::Sha512),
];

/// The `tls-server-end-point` of a certificate in DER: its hash, by the hash function of the
/// signature **on** it. That is the issuer's choice, whatever key the certificate itself holds.
///
/// `None` where the signature has no hash function of its own (Ed25519), for which there is no
/// channel binding.
///
/// Source: RFC 5929, section 4.1.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (oid, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    if oid != RSASSA_PSS {
        return hash_of(oid);
    }
    let (parameters, _) = element(parameters, SEQUENCE)?;
    // Left out, it is SHA-1.
    let Some((hash, _)) = element(parameters, CONTEXT_0) else { return Some(Hash::Sha256) };
    let (hash, _) = element(hash, SEQUENCE)?;
    hash_of(element(hash, OBJECT_IDENTIFIER)?.0)
}

fn hash_of(oid: &[u8]) -> Option<Hash> {
    HASHES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)
}

/// The content of the DER element at the beginning, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = der else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // So many bytes hold the length; a certificate needs no more than three.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
    use rcgen::{PKCS_ED25519, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn end_point_is_hashed_as_the_certificate_was_signed() {
        let der = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(tls_server_end_point(&der), Some(Sha256::digest(&der).to_vec()));
        let der = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(tls_server_end_point(&der), Some(Sha384::digest(&der).to_vec()));
        assert_eq!(tls_server_end_point(&certificate(&PKCS_ED25519)), None);
    }

    #[test]
    fn end_point_finds_the_hash_of_rsassa_pss_in_its_parameters() {
        let signed_by = |parameters: &[u8]| {
            let wrap = |tag: u8, content: &[u8]| {
                [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
            };
            let oid = wrap(OBJECT_IDENTIFIER, RSASSA_PSS);
            let algorithm = wrap(SEQUENCE, &[oid, wrap(SEQUENCE, parameters)].concat());
            wrap(SEQUENCE, &[wrap(SEQUENCE, b"tbs"), algorithm].concat())
        };
        let sha384 = HASHES.iter().rfind(|(_, hash)| *hash == Hash::Sha384).unwrap().0;
        let parameters =
            [&[CONTEXT_0, 13, SEQUENCE, 11, OBJECT_IDENTIFIER, 9][..], sha384].concat();
        assert_eq!(signature_hash(&signed_by(&parameters)), Some(Hash::Sha384));
        assert_eq!(signature_hash(&signed_by(b"")), Some(Hash::Sha256));
    }

    #[test]
    fn end_point_of_a_torn_certificate_is_none() {
        let der = certificate(&PKCS_ECDSA_P256_SHA256);
        for end in 0..der.len() {
            assert_eq!(tls_server_end_point(&der[..end]), None, "{end}");
        }
    }
}
