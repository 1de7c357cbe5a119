//! A redb file in the folder that `--db-path` names.
use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use seldon_core::Record;

use super::{
    Store, StoreError, Write,
    record::{self, Encoded},
};

const MODELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("models");
const SERVERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("servers");
/// Stores of before experiments have it from their next opening on.
const EXPERIMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("experiments");
/// And those of before pipelines this one.
const PIPELINES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pipelines");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
const FILE: &str = "scheduler.redb";

/// Definitions may hold credentials.
const OWNER_ONLY: u32 = 0o600;

/// Survives `kill -9`: what `commit` returned for is on disk.
pub struct Disk {
    file: PathBuf,
    /// None after a failure, until the file is opened again: the database refuses everything after one.
    database: Option<Database>,
}

impl Disk {
    /// Opens or creates the file in `folder`, which is created as well.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let file = folder.join(FILE);
        fs::create_dir_all(folder).map_err(|e| unopened(&file, e))?;
        create_for_owner(&file).map_err(|e| unopened(&file, e))?;
        let database = Database::create(&file).map_err(|e| unopened(&file, e))?;
        prepare(&database)?;
        Ok(Self {
            file,
            database: Some(database),
        })
    }

    /// The database, opened again where it failed before. A file that is gone is not made anew: it would lack the rest.
    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = Database::open(&self.file).map_err(|e| unopened(&self.file, e))?;
                prepare(&database)?;
                database
            }
        };
        Ok(self.database.insert(database))
    }
}

fn unopened(file: &Path, cause: impl std::fmt::Display) -> StoreError {
    StoreError::Open {
        path: file.display().to_string(),
        cause: cause.to_string(),
    }
}

fn create_for_owner(file: &Path) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(OWNER_ONLY)
        .open(file)?;
    // Made by another user on a shared volume, it may be ours to write and not to change.
    if let Err(error) = fs::set_permissions(file, Permissions::from_mode(OWNER_ONLY)) {
        tracing::warn!(file = %file.display(), %error, "others may be able to read the store");
    }
    Ok(())
}

fn prepare(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let mut about = transaction.open_table(ABOUT).map_err(failed)?;
        let found = about.get(FORMAT_KEY).map_err(failed)?.map(|v| v.value());
        match found {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(StoreError::Format {
                    found,
                    known: FORMAT,
                });
            }
            None => drop(about.insert(FORMAT_KEY, FORMAT).map_err(failed)?),
        }
        transaction.open_table(MODELS).map_err(failed)?;
        transaction.open_table(SERVERS).map_err(failed)?;
        transaction.open_table(EXPERIMENTS).map_err(failed)?;
        transaction.open_table(PIPELINES).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

fn write_all(database: &Database, writes: &[Write]) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let mut models = transaction.open_table(MODELS).map_err(failed)?;
        let mut servers = transaction.open_table(SERVERS).map_err(failed)?;
        let mut experiments = transaction.open_table(EXPERIMENTS).map_err(failed)?;
        let mut pipelines = transaction.open_table(PIPELINES).map_err(failed)?;
        for write in writes {
            match write {
                Write::Put(record) => match record::encode(record) {
                    Encoded::Model(name, bytes) => {
                        models.insert(name, bytes.as_slice()).map_err(failed)?;
                    }
                    Encoded::Pipeline(name, bytes) => {
                        pipelines.insert(name, bytes.as_slice()).map_err(failed)?;
                    }
                    Encoded::Server(name, bytes) => {
                        servers.insert(name, bytes.as_slice()).map_err(failed)?;
                    }
                    Encoded::Experiment(name, bytes) => {
                        experiments.insert(name, bytes.as_slice()).map_err(failed)?;
                    }
                },
                Write::ForgetModel(name) => {
                    models.remove(&**name).map_err(failed)?;
                }
                Write::ForgetServer(name) => {
                    servers.remove(&**name).map_err(failed)?;
                }
                Write::ForgetExperiment(name) => {
                    experiments.remove(&**name).map_err(failed)?;
                }
                Write::ForgetPipeline(name) => {
                    pipelines.remove(&**name).map_err(failed)?;
                }
            }
        }
    }
    transaction.commit().map_err(failed)
}

type Decode = fn(&str, &[u8]) -> Result<Record, StoreError>;

impl Store for Disk {
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
        let Some(database) = &self.database else {
            return Err(failed("it was closed after a failure"));
        };
        let transaction = database.begin_read().map_err(failed)?;
        let tables: [(_, Decode); 4] = [
            (SERVERS, record::server),
            (MODELS, record::model),
            (PIPELINES, record::pipeline),
            (EXPERIMENTS, record::experiment),
        ];
        let mut records = Vec::new();
        for (table, decode) in tables {
            let table = transaction.open_table(table).map_err(failed)?;
            for row in table.iter().map_err(failed)? {
                let (name, bytes) = row.map_err(failed)?;
                records.push(decode(name.value(), bytes.value())?);
            }
        }
        Ok(Some(records))
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let outcome = write_all(self.database()?, writes);
        if outcome.is_err() {
            self.database = None;
        }
        outcome
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may
mod tests {
    use super::*;

    #[test]
    fn a_database_that_failed_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Disk::open(folder.path()).unwrap();
        let server = Record::Server {
            name: "mlserver".into(),
            expected_replicas: 1,
            min_replicas: 0,
            max_replicas: 0,
        };
        disk.database = None;
        disk.commit(&[Write::Put(server.clone())]).unwrap();
        assert_eq!(disk.restore().unwrap(), Some(vec![server]));
        let mode = fs::metadata(&disk.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        disk.database = None;
        fs::remove_file(&disk.file).unwrap();
        let gone = disk.commit(&[Write::ForgetServer("mlserver".into())]);
        assert!(matches!(gone, Err(StoreError::Open { .. })) && !disk.file.exists());
    }
}
