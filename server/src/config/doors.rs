//! Where callers come in, and what they show.

use std::net::{Ipv4Addr, SocketAddr};

use super::{AuthConfig, IssuerConfig, TlsConfig, layers::Layers, units::MINUTE};
use crate::auth::{Required, Scope, Signing, Word, is_trustworthy};

pub(super) fn auth(from: &mut Layers) -> AuthConfig {
    let required = from.take("auth.required", Required::Auto);
    let named = from.tables_under("auth.issuer");
    let issuers = named.into_iter().map(|(name, _)| issuer(from, name)).collect();
    AuthConfig { required, issuers }
}

pub(super) fn tls(from: &mut Layers) -> Option<TlsConfig> {
    let (cert, of_cert) = from.take_from("http.tls_cert", None);
    let (key, of_key) = from.take_from("http.tls_key", None);
    let alone = |other: &str| format!("goes with {other}: set both, or none for http");
    match (cert, key) {
        (Some(cert), Some(key)) => return Some(TlsConfig { cert, key }),
        (None, None) => {}
        (Some(_), None) => from.problem(of_cert, "http.tls_cert", alone("http.tls_key")),
        (None, Some(_)) => from.problem(of_key, "http.tls_key", alone("http.tls_cert")),
    }
    None
}

fn issuer(from: &mut Layers, name: String) -> IssuerConfig {
    let key = |setting: &str| format!("auth.issuer.{name}.{setting}");
    let (issuer, source) = from.take_from(&key("issuer"), String::new());
    if !is_trustworthy(&issuer) {
        let message = format!(
            "{issuer:?} is not an issuer's address: write https://login.example, as its tokens have it"
        );
        from.problem(source, &key("issuer"), message);
    }
    let (audience, source) = from.take_from(&key("audience"), Vec::<String>::new());
    if audience.is_empty() {
        let message =
            "must name what tokens for this server are for, such as https://greenroom.example/mcp".to_owned();
        from.problem(source, &key("audience"), message);
    }
    let (jwks_url, source) = from.take_from(&key("jwks_url"), None::<String>);
    if jwks_url.as_ref().is_some_and(|url| !is_trustworthy(url)) {
        from.problem(
            source,
            &key("jwks_url"),
            "must be an address with https".to_owned(),
        );
    }
    let (leeway, source) = from.take_from(&key("leeway"), MINUTE);
    if leeway > 10 * MINUTE {
        from.problem(source, &key("leeway"), "must be at most 10m".to_owned());
    }
    let (signing, source) = from.take_from(&key("signing"), Signing::ALL.to_vec());
    if signing.is_empty() {
        from.problem(source, &key("signing"), "must name at least one way".to_owned());
    }
    let names = Scope::ALL.map(|scope| {
        let called = from.take(&key(scope.as_str()), vec![format!("sandbox:{scope}")]);
        (scope, called)
    });
    IssuerConfig {
        issuer,
        audience,
        jwks_url,
        signing,
        names: names.to_vec(),
        grants: from.take(&key("grants"), Vec::new()),
        pools: from.take(&key("pools"), Vec::new()),
        word: if from.take(&key("asserts_conversations"), false) {
            Word::Believed
        } else {
            Word::Ignored
        },
        leeway,
        name,
    }
}

pub(super) fn listen(from: &mut Layers, auth: &AuthConfig) -> SocketAddr {
    let (listen, source) = from.take_from("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8484)));
    if !listen.ip().is_loopback() && auth.required == Required::Never {
        let message = format!(
            "{listen} is not a loopback address: there auth.required cannot be \"never\", since anybody could run code"
        );
        from.problem(source, "listen", message);
    }
    listen
}

/// As public as `listen` may be, and never the same.
pub(super) fn forward_listen(from: &mut Layers, listen: SocketAddr, auth: &AuthConfig) -> Option<SocketAddr> {
    let (apart, source) = from.take_from("http.forward_listen", None::<SocketAddr>);
    let address = apart?;
    if !address.ip().is_loopback() && auth.required == Required::Never {
        let message = format!("{address} is not a loopback address: there auth.required cannot be \"never\"");
        from.problem(source, "http.forward_listen", message);
    } else if address.port() != 0 && address.port() == listen.port() {
        let message = "needs a port that listen does not have, to be another origin".to_owned();
        from.problem(source, "http.forward_listen", message);
    }
    Some(address)
}
