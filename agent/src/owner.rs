//! Whose folder this is: models that another server's agent left in it are not ours to serve.
use std::path::Path;

use anyhow::Context;

use crate::repository::{MODELS, remove_folder};

const FILE: &str = "owner";

/// Makes the folder ours. One that belonged to an agent of another server, index or kind of server is emptied of its
/// models; one that nobody has signed is taken over with what is in it.
pub(crate) fn claim(folder: &Path, owner: &str) -> anyhow::Result<()> {
    let file = folder.join(FILE);
    let former = match std::fs::read_to_string(&file) {
        Ok(former) => Some(former),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    match former {
        Some(former) if former == owner => return Ok(()),
        Some(former) => {
            tracing::warn!(
                folder = %folder.display(),
                former,
                owner,
                "the folder belonged to another replica: the models in it are removed"
            );
            remove_folder(&folder.join(MODELS))?;
        }
        None => {}
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::write(&file, owner).with_context(|| file.display().to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may
mod tests {
    use super::*;

    #[test]
    fn models_of_another_replica_are_removed_and_ones_own_stay() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("models/iris_1/1/model.joblib");
        let put = || {
            std::fs::create_dir_all(model.parent().unwrap()).unwrap();
            std::fs::write(&model, "x").unwrap();
        };
        put();
        claim(folder.path(), "mlserver 0 mlserver").unwrap();
        assert!(model.exists(), "left by an agent that did not sign");
        claim(folder.path(), "mlserver 0 mlserver").unwrap();
        assert!(model.exists());
        claim(folder.path(), "triton 0 triton").unwrap();
        assert!(!model.exists());
        put();
        claim(folder.path(), "triton 0 triton").unwrap();
        assert!(model.exists());
        let fresh = folder.path().join("new/agent");
        claim(&fresh, "a 1 mlserver").unwrap();
        assert!(fresh.join(FILE).exists());
    }
}
