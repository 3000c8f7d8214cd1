//! An issuer's own word on where its keys are (OpenID Connect Discovery 1.0 section 4).

use serde_json::Value;

/// Where the issuer's configuration is.
pub(super) fn address_of(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

/// Where the keys are. The configuration must be this very issuer's (section 4.3), and over TLS it leads to TLS.
pub(super) fn keys_of(configuration: &[u8], issuer: &str, secure: bool) -> Result<String, &'static str> {
    let read: Value = serde_json::from_slice(configuration).map_err(|_| "it is no JSON")?;
    let text = |name: &str| read.get(name).and_then(Value::as_str);
    if text("issuer") != Some(issuer) {
        return Err("it names another issuer");
    }
    let keys = text("jwks_uri").ok_or("it has no `jwks_uri`")?;
    if secure && !keys.starts_with("https://") {
        return Err("its `jwks_uri` is not https");
    }
    Ok(keys.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_believed_about_its_own_issuer_only() {
        assert_eq!(
            address_of("https://a.test/realm/"),
            "https://a.test/realm/.well-known/openid-configuration"
        );
        let said = |text: &str| keys_of(text.as_bytes(), "https://a.test", true);
        let good = r#"{"issuer":"https://a.test","jwks_uri":"https://keys.test/jwks"}"#;
        assert_eq!(said(good), Ok("https://keys.test/jwks".to_owned()));
        for (text, why) in [
            ("<html>", "it is no JSON"),
            (r#"{"jwks_uri":"https://a.test/jwks"}"#, "it names another issuer"),
            (
                r#"{"issuer":"https://a.test/","jwks_uri":"https://a.test/jwks"}"#,
                "it names another issuer",
            ),
            (r#"{"issuer":"https://a.test"}"#, "it has no `jwks_uri`"),
            (
                r#"{"issuer":"https://a.test","jwks_uri":"http://a.test/jwks"}"#,
                "its `jwks_uri` is not https",
            ),
        ] {
            assert_eq!(said(text), Err(why), "{text}");
        }
        let clear = r#"{"issuer":"http://a.test","jwks_uri":"http://a.test/jwks"}"#;
        assert!(keys_of(clear.as_bytes(), "http://a.test", false).is_ok());
    }
}
