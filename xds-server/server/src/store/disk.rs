//! A redb file in the folder that `--db-path` names.
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use seldon_core::Record;

use super::{
    Store, StoreError, Write,
    record::{self, Encoded},
};

const MODELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("models");
const SERVERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("servers");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
const FILE: &str = "scheduler.redb";

/// Survives `kill -9`: what `commit` returned for is on disk.
pub struct Disk(Database);

impl Disk {
    /// Opens or creates the file in `folder`, which is created as well.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let file = folder.join(FILE);
        let failed = |cause: String| StoreError::Open {
            path: file.display().to_string(),
            cause,
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
        let database = Database::create(&file).map_err(|e| failed(e.to_string()))?;
        let disk = Self(database);
        disk.prepare()?;
        Ok(disk)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let transaction = self.0.begin_write().map_err(failed)?;
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
        }
        transaction.commit().map_err(failed)
    }
}

impl Store for Disk {
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
        let transaction = self.0.begin_read().map_err(failed)?;
        let mut records = Vec::new();
        for row in transaction
            .open_table(SERVERS)
            .map_err(failed)?
            .iter()
            .map_err(failed)?
        {
            let (name, bytes) = row.map_err(failed)?;
            records.push(record::server(name.value(), bytes.value())?);
        }
        for row in transaction
            .open_table(MODELS)
            .map_err(failed)?
            .iter()
            .map_err(failed)?
        {
            let (name, bytes) = row.map_err(failed)?;
            records.push(record::model(name.value(), bytes.value())?);
        }
        Ok(Some(records))
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let transaction = self.0.begin_write().map_err(failed)?;
        {
            let mut models = transaction.open_table(MODELS).map_err(failed)?;
            let mut servers = transaction.open_table(SERVERS).map_err(failed)?;
            for write in writes {
                match write {
                    Write::Put(record) => match record::encode(record) {
                        Encoded::Model(name, bytes) => {
                            models.insert(name, bytes.as_slice()).map_err(failed)?;
                        }
                        Encoded::Server(name, bytes) => {
                            servers.insert(name, bytes.as_slice()).map_err(failed)?;
                        }
                    },
                    Write::ForgetModel(name) => {
                        models.remove(&**name).map_err(failed)?;
                    }
                    Write::ForgetServer(name) => {
                        servers.remove(&**name).map_err(failed)?;
                    }
                }
            }
        }
        transaction.commit().map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}
