//! Names of the folders of downloads. Each is made from where an artefact comes from and with which credentials, so
//! that only those who have the same share a download; mixed with a word of this machine, so that it tells nothing.
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

const SALT: &str = ".salt";
const SALT_BYTES: usize = 32;
/// Characters of a name.
const LENGTH: usize = 32;

/// Makes the names of one folder.
pub struct Names {
    salt: Vec<u8>,
}

impl Names {
    /// Takes the folder's word, or makes one.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SALT);
        if let Ok(salt) = std::fs::read(&path)
            && salt.len() == SALT_BYTES
        {
            return Ok(Self { salt });
        }
        let mut salt = vec![0; SALT_BYTES];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
        let mut options = std::fs::OpenOptions::new();
        let options = options.create(true).write(true).truncate(true).mode(0o600);
        options.open(&path)?.write_all(&salt)?;
        Ok(Self { salt })
    }

    /// The same for the same source.
    pub fn of(&self, source: &str) -> String {
        let digest = Sha256::new().chain_update(&self.salt).chain_update(source);
        let mut name = String::with_capacity(LENGTH);
        for byte in digest.finalize().iter().take(LENGTH / 2) {
            name.push_str(&format!("{byte:02x}"));
        }
        name
    }

    /// Says whether a name may have been made here.
    pub fn is_one(name: &str) -> bool {
        name.len() == LENGTH && name.chars().all(|c| c.is_ascii_hexdigit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_last_and_tell_sources_apart() {
        let folder = tempfile::tempdir().unwrap();
        let name = |source: &str| Names::open(folder.path()).unwrap().of(source);
        let first = name("a");
        assert!(Names::is_one(&first) && !Names::is_one("copy-1"));
        assert_eq!(first, name("a"));
        assert_ne!(first, name("b"));
        std::fs::write(folder.path().join(SALT), "damaged").unwrap();
        assert_ne!(first, name("a"));
    }
}
