//! Stateless resets (RFC 9000, section 10.3): a node that was killed and started again tells whoever still speaks to the
//! process before it that there is no such connection any more. They connect anew at once; without it they would find out
//! by silence, seconds later.
//!
//! A reset carries a token that the earlier process gave out. So what tokens and connection ids are made of has to outlive
//! the process: both are derived from the cluster's secret and the node's id.

use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;
use ring::NodeId;

/// Makes the tokens.
pub(super) struct ResetKey([u8; 32]);

/// What a node's resets and connection ids are made of.
pub(super) fn keys(secret: &[u8; 32], node: NodeId) -> (ResetKey, u64) {
    let derive = |context: &str| {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(secret).update(&node.0.to_be_bytes());
        *hasher.finalize().as_bytes()
    };
    let ids = derive("quorate 2026-11-26 connection ids");
    let first = ids.first_chunk().expect("it has 32 bytes");
    (ResetKey(derive("quorate 2026-11-26 stateless reset tokens")), u64::from_be_bytes(*first))
}

/// A generator of connection ids that a later process of the node knows as its own.
pub(super) fn connection_ids(key: u64) -> HashedConnectionIdGenerator {
    HashedConnectionIdGenerator::from_key(key)
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = blake3::keyed_hash(&self.0, data);
        signature_out.copy_from_slice(&signature.as_bytes()[..signature_out.len()]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Compared in constant time.
        let is_it =
            signature.try_into().is_ok_and(|given: [u8; 32]| blake3::keyed_hash(&self.0, data) == given);
        if is_it { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_verified_by_a_later_process_and_by_no_other_node() {
        let ((key, ids), (later, same)) = (keys(&[7; 32], NodeId(1)), keys(&[7; 32], NodeId(1)));
        let (other, others) = keys(&[7; 32], NodeId(2));
        assert_eq!(ids, same);
        assert_ne!(ids, others);
        let mut signature = [0; 32];
        key.sign(b"id", &mut signature);
        assert!(later.verify(b"id", &signature).is_ok());
        assert!(other.verify(b"id", &signature).is_err());
        assert!(later.verify(b"other", &signature).is_err() && later.verify(b"id", &signature[1..]).is_err());
    }
}
