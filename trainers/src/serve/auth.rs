//! Who may ask.

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Checks the token of a request. Holds its hash only; the comparison takes the same time wherever the first difference is,
/// and whatever the length of what was sent.
pub(super) struct Auth {
    digest: Option<[u8; 32]>,
}

impl Auth {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self { digest: token.map(|token| Sha256::digest(token).into()) }
    }

    /// `Authorization: Bearer TOKEN`, or `Api-Key TOKEN` as openpi's client writes it.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(digest) = &self.digest else { return true };
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let value = value.as_bytes();
        let Some(space) = value.iter().position(|b| *b == b' ') else { return false };
        let (scheme, token) = (&value[..space], value[space..].trim_ascii());
        let known =
            scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"api-key");
        let sent: [u8; 32] = Sha256::digest(token).into();
        known & bool::from(sent.ct_eq(digest))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_under_a_known_scheme_is_admitted() {
        let auth = Auth::new(Some("0123456789abcdef"));
        let admits = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            auth.admits(&headers)
        };
        assert!(admits("Bearer 0123456789abcdef") && admits("Api-Key 0123456789abcdef"));
        assert!(admits("bearer  0123456789abcdef"));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789abcdeF",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!auth.admits(&HeaderMap::new()));
        let mut twice = HeaderMap::new();
        for value in ["Bearer 0123456789abcdef", "Bearer x"] {
            twice.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        assert!(!auth.admits(&twice));
        assert!(Auth::new(None).admits(&HeaderMap::new()));
    }
}
