//! Names of the folders of downloads. Each is made from where an artefact comes from and with which credentials, so
//! that only those who have the same share a download; mixed with a word of this machine, so that it tells nothing.
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::process::{hex, private_file, random};

const SALT: &str = ".salt";
const SALT_BYTES: usize = 32;
/// Characters of a name.
const LENGTH: usize = 32;

/// Makes the names of one folder.
pub struct Names {
    salt: [u8; SALT_BYTES],
}

impl Names {
    /// Takes the folder's word, or makes one.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SALT);
        if let Ok(salt) = std::fs::read(&path)
            && let Ok(salt) = salt.try_into()
        {
            return Ok(Self { salt });
        }
        let salt = random()?;
        private_file(&path)?.write_all(&salt)?;
        Ok(Self { salt })
    }

    /// The same for the same source.
    pub fn of(&self, source: &str) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(source);
        hex(&digest.finalize()[..LENGTH / 2])
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
