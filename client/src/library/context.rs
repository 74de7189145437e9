//! Causal contexts as the caller holds them.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use thiserror::Error;

/// What a reader has seen of a key: a write that carries it replaces exactly that. Opaque, sealed by the cluster, and
/// good for its key alone.
///
/// As text it is base64url, which needs no quoting in a shell or a URL:
///
/// ```
/// let context: client::Context = "AQIDBA".parse().unwrap();
/// assert_eq!(context.as_bytes(), [1, 2, 3, 4]);
/// assert_eq!(context.to_string(), "AQIDBA");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context(Bytes);

/// Text that is no context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a context: a context is what a get printed, letters, digits, `-` and `_`, and nothing else")]
pub struct BadContextText;

impl Context {
    /// A context from its bytes, as [`Context::as_bytes`] gave them.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Context {
        Context(bytes.into())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl FromStr for Context {
    type Err = BadContextText;

    fn from_str(text: &str) -> Result<Context, BadContextText> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| BadContextText)?;
        Ok(Context(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_reads_back_as_it_is_printed() {
        let context = Context::from_bytes((0..=255).collect::<Vec<u8>>());
        assert_eq!(context.to_string().parse(), Ok(context));
        for bad in ["a context", "AQ ID", "A", "käse"] {
            assert_eq!(bad.parse::<Context>(), Err(BadContextText), "{bad}");
        }
    }
}
