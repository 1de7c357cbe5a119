//! Where an artefact lies: `storageUri`, parsed here and never by rclone.
//!
//! rclone's own syntax is a small language: `:webdav,bearer_token_command=…:` starts programs and `name,opt=value:`
//! changes a remote. Only three forms are accepted: a configured remote's name with a path, an absolute path inside
//! the allowed roots, and http(s) of an allowed host.
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The longest `storageUri` that is looked at.
const MAX_LENGTH: usize = 4096;

/// What an operator allows.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Names of configured remotes.
    pub remotes: BTreeSet<String>,
    /// Folders that absolute paths may lie in.
    pub local_roots: Vec<PathBuf>,
    /// Hosts (`host` or `host:port`) that http and https may name.
    pub http_hosts: BTreeSet<String>,
}

/// A checked location.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A path on a configured remote.
    Remote { name: String, path: String },
    /// An absolute path inside an allowed root.
    Local(PathBuf),
    /// A path on an allowed web server; `origin` is `scheme://host[:port]`.
    Http { origin: String, path: String },
}

/// Why a `storageUri` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("storageUri is empty: give <remote>://<path> or an absolute path")]
    Empty,
    #[error("storageUri is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("storageUri holds a control character")]
    ControlCharacter,
    #[error(
        "storageUri is an rclone connection string, which is not allowed: configure a remote and use its name, as in <remote>://<path>"
    )]
    ConnectionString,
    #[error("storageUri {0:?} names no location: give <remote>://<path> or an absolute path")]
    NoScheme(String),
    #[error("storageUri {0:?} has no path after the remote's name")]
    NoPath(String),
    #[error("storageUri {0:?} must not contain \"..\"")]
    ParentFolder(String),
    #[error(
        "remote {name:?} is not configured in rclone (configured: {known}): add it to the agent's configuration or to the model's storage secret"
    )]
    UnknownRemote { name: String, known: String },
    #[error(
        "path {path:?} is outside the folders that models may be read from ({roots}): see the agent's --allowed-local-roots"
    )]
    OutsideRoots { path: String, roots: String },
    #[error(
        "host {0:?} may not be read over http: see the agent's --allowed-http-hosts (SELDON_ALLOWED_HTTP_HOSTS, also for `seldon local up`)"
    )]
    HostNotAllowed(String),
}

/// A location as errors show it: without what may be a user and a password, or a signature in a query.
pub fn redacted(uri: &str) -> String {
    let shown = uri.split(['?', '#']).next().unwrap_or_default();
    let Some((_, rest)) = uri.rsplit_once('@') else {
        return shown.to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    match uri.split_once("://") {
        Some((scheme, _)) if is_remote_name(scheme) => format!("{scheme}://***@{rest}"),
        _ => format!("***@{rest}"),
    }
}

/// Parses a `storageUri` and checks it against the policy.
pub fn parse(uri: &str, policy: &Policy) -> Result<Location, UriError> {
    let uri = uri.trim_matches(' ');
    if uri.is_empty() {
        return Err(UriError::Empty);
    }
    if uri.len() > MAX_LENGTH {
        return Err(UriError::TooLong);
    }
    if uri.chars().any(char::is_control) {
        return Err(UriError::ControlCharacter);
    }
    if uri.starts_with(':') {
        return Err(UriError::ConnectionString);
    }
    if uri.starts_with('/') {
        return local(uri, policy);
    }
    let Some((name, rest)) = uri.split_once(':') else {
        return Err(UriError::NoScheme(redacted(uri)));
    };
    if name.contains([',', '"', '\'', '=', '{', '}']) {
        return Err(UriError::ConnectionString);
    }
    if !is_remote_name(name) {
        return Err(UriError::NoScheme(redacted(uri)));
    }
    if has_parent(rest) {
        return Err(UriError::ParentFolder(redacted(uri)));
    }
    if matches!(name, "http" | "https") && rest.starts_with("//") {
        return http(name, &rest[2..], policy);
    }
    remote(name, rest, policy)
}

/// The remote's name in front of the first colon, whatever follows: what a storage configuration must be called.
pub fn remote_name(uri: &str) -> Option<&str> {
    let (name, _) = uri.trim_matches(' ').split_once(':')?;
    is_remote_name(name).then_some(name)
}

fn remote(name: &str, rest: &str, policy: &Policy) -> Result<Location, UriError> {
    if !policy.remotes.contains(name) {
        let known = policy
            .remotes
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(UriError::UnknownRemote {
            name: name.to_owned(),
            known,
        });
    }
    let path = rest
        .strip_prefix("//")
        .unwrap_or(rest)
        .trim_end_matches('/');
    if path.is_empty() {
        return Err(UriError::NoPath(format!("{name}:{rest}")));
    }
    Ok(Location::Remote {
        name: name.to_owned(),
        path: path.to_owned(),
    })
}

fn http(scheme: &str, rest: &str, policy: &Policy) -> Result<Location, UriError> {
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !policy.http_hosts.contains(host) {
        // A user name or password in front of the host is never shown.
        let shown = rest.rsplit('@').next().unwrap_or_default();
        let shown = shown.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(UriError::HostNotAllowed(shown.to_owned()));
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Err(UriError::NoPath(format!("{scheme}://{host}")));
    }
    Ok(Location::Http {
        origin: format!("{scheme}://{host}"),
        path: path.to_owned(),
    })
}

fn local(uri: &str, policy: &Policy) -> Result<Location, UriError> {
    if has_parent(uri) {
        return Err(UriError::ParentFolder(redacted(uri)));
    }
    let path: PathBuf = Path::new(uri)
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    if !inside(&path, &policy.local_roots) {
        return Err(UriError::OutsideRoots {
            path: redacted(&path.display().to_string()),
            roots: names(&policy.local_roots),
        });
    }
    Ok(Location::Local(path))
}

/// Says whether a path lies in one of the roots, by its components.
pub fn inside(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

/// The roots as an error shows them.
pub fn names(roots: &[PathBuf]) -> String {
    if roots.is_empty() {
        return "none".to_owned();
    }
    roots
        .iter()
        .map(|root| root.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn has_parent(path: &str) -> bool {
    path.split(['/', '\\']).any(|part| part == "..")
}

/// What rclone allows in a remote's name, without the blanks.
fn is_remote_name(name: &str) -> bool {
    let first = name
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric() || first == '_');
    first
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '@'))
}

impl std::fmt::Display for Location {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Remote { name, path } => write!(out, "{name}://{path}"),
            Self::Local(path) => write!(out, "{}", path.display()),
            Self::Http { origin, path } => write!(out, "{origin}/{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> Policy {
        Policy {
            remotes: ["gs", "s3", "my-remote"].map(str::to_owned).into(),
            local_roots: vec!["/mnt".into(), "/var/models".into()],
            http_hosts: ["models.example".to_owned()].into(),
        }
    }

    fn refused(uri: &str) -> UriError {
        parse(uri, &policy()).expect_err(uri)
    }

    #[test]
    fn documented_forms_are_accepted() {
        let remote = |name: &str, path: &str| Location::Remote {
            name: name.into(),
            path: path.into(),
        };
        for (uri, expected) in [
            (
                "gs://seldon-models/mlserver/iris",
                remote("gs", "seldon-models/mlserver/iris"),
            ),
            ("s3://models/iris/", remote("s3", "models/iris")),
            ("my-remote:a/b c", remote("my-remote", "a/b c")),
            ("s3:///absolute", remote("s3", "/absolute")),
            ("gs:bucket/a:b,c", remote("gs", "bucket/a:b,c")),
            (
                "/mnt/models/./iris/",
                Location::Local("/mnt/models/iris".into()),
            ),
            (
                "/var/models/iris",
                Location::Local("/var/models/iris".into()),
            ),
            (
                "https://models.example/iris/1",
                Location::Http {
                    origin: "https://models.example".into(),
                    path: "iris/1".into(),
                },
            ),
        ] {
            assert_eq!(parse(uri, &policy()), Ok(expected), "{uri}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        assert_eq!(refused(""), UriError::Empty);
        assert_eq!(refused("  "), UriError::Empty);
        assert_eq!(refused("gs://a\0b"), UriError::ControlCharacter);
        assert_eq!(refused("gs://a\nb"), UriError::ControlCharacter);
        for uri in [
            ":webdav,bearer_token_command='id':/x",
            ":local:/etc",
            "gs,project=x:bucket",
            "s3,endpoint=\"http://x\":b/k",
            "\"gs\":b",
            "'gs':b",
            "{a}:b",
        ] {
            assert_eq!(refused(uri), UriError::ConnectionString, "{uri}");
        }
        for uri in ["models/iris", "./iris", "gs /x: y", " -x:y", "ä:x"] {
            assert!(matches!(refused(uri), UriError::NoScheme(_)), "{uri}");
        }
        for uri in [
            "gs://a/../b",
            "gs:..",
            "/mnt/../etc/passwd",
            "/mnt/..",
            "gs://a\\..\\b",
        ] {
            assert!(matches!(refused(uri), UriError::ParentFolder(_)), "{uri}");
        }
        for uri in ["/etc/passwd", "/mntx/models", "/", "//etc"] {
            let error = refused(uri);
            assert!(
                matches!(error, UriError::OutsideRoots { .. }),
                "{uri}: {error}"
            );
        }
        assert!(
            matches!(refused("minio://b/k"), UriError::UnknownRemote { name, .. } if name == "minio")
        );
        assert!(matches!(refused("gs://"), UriError::NoPath(_)));
        assert_eq!(
            refused("http://user:secret@elsewhere/x"),
            UriError::HostNotAllowed("elsewhere".into())
        );
        assert_eq!(
            refused("https://models.example.evil/x"),
            UriError::HostNotAllowed("models.example.evil".into())
        );
        assert_eq!(
            refused(&format!("gs://{}", "a".repeat(5000))),
            UriError::TooLong
        );
    }

    /// What holds for any input, used by the property test and by the corpus.
    fn holds(uri: &str) {
        match parse(uri, &policy()) {
            Ok(Location::Remote { name, path }) => {
                assert!(policy().remotes.contains(&name));
                assert!(!path.is_empty() && !has_parent(&path));
            }
            Ok(Location::Local(path)) => {
                assert!(inside(&path, &policy().local_roots));
                assert!(path.components().all(|part| part != Component::ParentDir));
            }
            Ok(Location::Http { origin, .. }) => assert!(origin.ends_with("://models.example")),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    proptest! {
        #[test]
        fn nothing_gets_past_the_policy(uri in ".{0,60}") {
            holds(&uri);
        }

        #[test]
        fn nothing_like_a_location_gets_past(
            head in "(gs|s3|gs,a=b|:local|:sftp,ssh='id'|/mnt|/etc|https|http|file)",
            tail in "[:/.,\\\\a-z\"'@]{0,20}",
        ) {
            holds(&format!("{head}{tail}"));
        }
    }

    proptest! {
        #[test]
        fn no_error_repeats_a_user_or_password(
            scheme in "(https?|gs|minio|file|ä|/|//|gs )",
            before in "[a-z:/.?#]{0,6}", after in "[a-z:/.?#]{0,6}",
            host in "(models.example|elsewhere|bucket)",
            tail in "[:/.\\\\a-z?@]{0,20}",
        ) {
            let uri = format!("{scheme}://{before}PLANTED{after}@{host}/{tail}");
            if let Err(error) = parse(&uri, &policy()) {
                prop_assert!(!error.to_string().contains("PLANTED"), "{uri}: {error}");
            }
            prop_assert!(!redacted(&uri).contains("PLANTED"), "{uri}");
        }
    }

    #[test]
    fn corpus_is_replayed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/uri");
        let mut files = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            holds(&String::from_utf8_lossy(&bytes));
            files += 1;
        }
        assert!(files >= 10, "the corpus is gone: {files} files");
    }
}
