//! Security as the documented environment describes it, as properties of librdkafka.
use std::{fs, path::Path};

use anyhow::{Context as _, bail};

use crate::{Result, fields::Properties};

/// Looks a variable up; injected so that tests need no process environment.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Keys of the OAuth secret, each a file of `KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION` or a variable
/// `KAFKA_CLIENT_SASL_OAUTHBEARER_<KEY>`, and the property each stands for.
const OAUTH: [(&str, &str, bool); 6] = [
    ("method", "sasl.oauthbearer.method", false),
    ("client_id", "sasl.oauthbearer.client.id", true),
    ("client_secret", "sasl.oauthbearer.client.secret", true),
    ("scope", "sasl.oauthbearer.scope", false),
    (
        "token_endpoint_url",
        "sasl.oauthbearer.token.endpoint.url",
        true,
    ),
    ("extensions", "sasl.oauthbearer.extensions", false),
];

/// The properties.
pub(crate) fn properties(lookup: Lookup<'_>) -> Result<Properties> {
    let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let protocol = get("KAFKA_SECURITY_PROTOCOL").unwrap_or_else(|| "PLAINTEXT".to_owned());
    let (tls, sasl) = match protocol.to_ascii_uppercase().as_str() {
        "PLAINTEXT" => return Ok(Properties::new()),
        "SSL" => (true, false),
        "SASL_SSL" => (true, true),
        "SASL_PLAINTEXT" => (false, true),
        _ => bail!(
            "KAFKA_SECURITY_PROTOCOL={protocol:?} is not known: use PLAINTEXT, SSL, SASL_SSL or SASL_PLAINTEXT"
        ),
    };
    let mut found = Properties::new();
    found.insert(
        "security.protocol".to_owned(),
        protocol.to_ascii_lowercase(),
    );
    if tls {
        self::tls(lookup, &mut found)?;
    }
    if sasl {
        self::sasl(lookup, &mut found)?;
    }
    Ok(found)
}

fn tls(lookup: Lookup<'_>, found: &mut Properties) -> Result<()> {
    let file = |variable: &str| -> Result<Option<String>> {
        let path = lookup(variable).filter(|path| !path.is_empty());
        path.map(|path| readable(variable, path)).transpose()
    };
    let key = file("KAFKA_CLIENT_TLS_KEY_LOCATION")?;
    let certificate = file("KAFKA_CLIENT_TLS_CRT_LOCATION")?;
    let authority = match file("KAFKA_BROKER_TLS_CA_LOCATION")? {
        Some(authority) => Some(authority),
        None => file("KAFKA_CLIENT_TLS_CA_LOCATION")?,
    };
    for side in ["CLIENT", "BROKER"] {
        let variable = format!("KAFKA_{side}_TLS_SECRET_NAME");
        let nothing = key.is_none() && certificate.is_none() && authority.is_none();
        if nothing && lookup(&variable).is_some_and(|name| !name.is_empty()) {
            bail!(
                "{variable} names a Kubernetes secret: mount it and name its files in KAFKA_{side}_TLS_*_LOCATION"
            );
        }
    }
    match (key, certificate) {
        (Some(key), Some(certificate)) => {
            found.insert("ssl.key.location".to_owned(), key);
            found.insert("ssl.certificate.location".to_owned(), certificate);
        }
        (None, None) => {}
        (Some(_), None) => bail!("KAFKA_CLIENT_TLS_CRT_LOCATION is not set, and the key needs it"),
        (None, Some(_)) => {
            bail!("KAFKA_CLIENT_TLS_KEY_LOCATION is not set, and the certificate needs it")
        }
    }
    if let Some(authority) = authority {
        found.insert("ssl.ca.location".to_owned(), authority);
    }
    let variable = "KAFKA_CLIENT_TLS_ENDPOINT_IDENTIFICATION_ALGORITHM";
    let algorithm = match lookup(variable).as_deref() {
        None | Some("https") => "https",
        Some("" | "none") => "none",
        Some(other) => {
            bail!("{variable}={other:?} is not known: use https, or leave it empty for none")
        }
    };
    found.insert(
        "ssl.endpoint.identification.algorithm".to_owned(),
        algorithm.to_owned(),
    );
    Ok(())
}

fn sasl(lookup: Lookup<'_>, found: &mut Properties) -> Result<()> {
    let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let mechanism = get("KAFKA_SASL_MECHANISM").unwrap_or_else(|| "PLAIN".to_owned());
    found.insert("sasl.mechanism".to_owned(), mechanism.clone());
    match mechanism.as_str() {
        "OAUTHBEARER" => return oauth(lookup, found),
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => {}
        other => bail!(
            "KAFKA_SASL_MECHANISM={other:?} is not known: use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        ),
    }
    let user = get("KAFKA_CLIENT_SASL_USERNAME").unwrap_or_else(|| "seldon".to_owned());
    let variable = "KAFKA_CLIENT_SASL_PASSWORD_LOCATION";
    let Some(path) = get(variable) else {
        bail!(
            "{variable} is not set, and {mechanism} needs a password: name the file that holds it"
        );
    };
    found.insert("sasl.username".to_owned(), user);
    found.insert(
        "sasl.password".to_owned(),
        content(variable, Path::new(&path))?,
    );
    Ok(())
}

fn oauth(lookup: Lookup<'_>, found: &mut Properties) -> Result<()> {
    let location = "KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION";
    let directory = lookup(location).filter(|path| !path.is_empty());
    for (key, property, needed) in OAUTH {
        let variable = format!("KAFKA_CLIENT_SASL_OAUTHBEARER_{}", key.to_ascii_uppercase());
        let file = directory.as_ref().map(|folder| Path::new(folder).join(key));
        let value = match (lookup(&variable).filter(|value| !value.is_empty()), file) {
            (Some(value), _) => value,
            (None, Some(file)) if needed || file.exists() => content(location, &file)?,
            (None, None) if needed => {
                bail!("OAUTHBEARER needs {variable}, or a file {key} in the folder {location}")
            }
            _ => continue,
        };
        if !value.is_empty() {
            found.insert(property.to_owned(), value);
        }
    }
    let authority = "KAFKA_CLIENT_SASL_OAUTHBEARER_CA_LOCATION";
    if let Some(path) = lookup(authority).filter(|path| !path.is_empty()) {
        found.insert("https.ca.location".to_owned(), readable(authority, path)?);
    }
    found
        .entry("sasl.oauthbearer.method".to_owned())
        .or_insert_with(|| "oidc".to_owned());
    Ok(())
}

fn readable(variable: &str, path: String) -> Result<String> {
    fs::File::open(&path).with_context(|| format!("{variable} names {path}"))?;
    Ok(path)
}

fn content(variable: &str, path: &Path) -> Result<String> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("{variable} names {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Properties> {
        properties(&|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn documented_variables() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (password, ca) = (write("password", "p w\n"), write("ca.crt", "x"));
        let found = with(&[
            ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
            ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
            ("KAFKA_CLIENT_SASL_PASSWORD_LOCATION", &password),
            ("KAFKA_BROKER_TLS_CA_LOCATION", &ca),
            ("KAFKA_CLIENT_TLS_ENDPOINT_IDENTIFICATION_ALGORITHM", ""),
        ])
        .unwrap();
        assert_eq!(found["security.protocol"], "sasl_ssl");
        assert_eq!(found["sasl.username"], "seldon");
        assert_eq!(found["sasl.password"], "p w");
        assert_eq!(found["ssl.ca.location"], ca);
        assert_eq!(found["ssl.endpoint.identification.algorithm"], "none");

        for (name, text) in [
            ("client_id", "c"),
            ("client_secret", "s"),
            ("token_endpoint_url", "http://t"),
        ] {
            write(name, text);
        }
        let found = with(&[
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "OAUTHBEARER"),
            (
                "KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION",
                folder.path().to_str().unwrap(),
            ),
            ("KAFKA_CLIENT_SASL_OAUTHBEARER_SCOPE", "kafka"),
        ])
        .unwrap();
        assert_eq!(found["sasl.oauthbearer.client.secret"], "s");
        assert_eq!(found["sasl.oauthbearer.scope"], "kafka");
        assert_eq!(with(&[]).unwrap(), Properties::new());
    }

    #[test]
    fn missing_files_and_wrong_values_are_named() {
        let ssl = ("KAFKA_SECURITY_PROTOCOL", "SSL");
        for (pairs, named) in [
            (vec![("KAFKA_SECURITY_PROTOCOL", "TLS")], "SASL_PLAINTEXT"),
            (
                vec![ssl, ("KAFKA_BROKER_TLS_CA_LOCATION", "/no/ca")],
                "KAFKA_BROKER_TLS_CA_LOCATION names /no/ca",
            ),
            (
                vec![("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")],
                "KAFKA_CLIENT_SASL_PASSWORD_LOCATION",
            ),
            (vec![ssl, ("KAFKA_CLIENT_TLS_SECRET_NAME", "s")], "mount it"),
        ] {
            let error = format!("{:#}", with(&pairs).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
