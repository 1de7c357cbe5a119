//! A redb file in the folder that `--db-path` names.
use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError, WriteTransaction,
};
use seldon_core::Record;

use super::{
    Store, StoreError, Write,
    record::{self, Kind},
    rescue::{self, guarded},
    seal,
};

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

impl Kind {
    fn table(self) -> Table {
        TableDefinition::new(match self {
            Kind::Server => "servers",
            Kind::Model => "models",
            Kind::Pipeline => "pipelines",
            Kind::Experiment => "experiments",
        })
    }
}

const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";
/// How many records there are: a table that is lost as a whole is missed.
const RECORDS_KEY: &str = "records";
/// Since 2 each record has a check sum.
const FORMAT: u64 = 2;
const WITHOUT_SUMS: u64 = 1;
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
    /// Opens or creates the file in `folder`, which is created as well. One of an older format is brought to this one;
    /// a copy is kept beside it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let file = folder.join(FILE);
        fs::create_dir_all(folder).map_err(|e| unopened(&file, e))?;
        create_for_owner(&file).map_err(|e| unopened(&file, e))?;
        let database = guarded(&file, || {
            let database = Database::create(&file).map_err(|e| unreadable(&file, e))?;
            prepare(&file, &database)?;
            Ok(database)
        })?;
        Ok(Self {
            file,
            database: Some(database),
        })
    }

    /// Closing writes as well, so a damaged file may make the database panic there.
    fn close(&mut self) {
        let database = self.database.take();
        let _ = guarded(&self.file, || {
            drop(database);
            Ok(())
        });
    }

    /// The database, opened again where it failed before. A file that is gone is not made anew: it would lack the rest.
    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let file = &self.file;
                guarded(file, || {
                    let database = Database::open(file).map_err(|e| unreadable(file, e))?;
                    prepare(file, &database)?;
                    Ok(database)
                })?
            }
        };
        Ok(self.database.insert(database))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
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

/// Brings a file to this format, if it is new or of an older one. One of this format is not written to.
fn prepare(file: &Path, database: &Database) -> Result<(), StoreError> {
    let found = format_of(database)?;
    match found {
        Some(FORMAT) => return Ok(()),
        Some(WITHOUT_SUMS) | None => {}
        Some(found) => {
            return Err(StoreError::Format {
                path: file.display().to_string(),
                found,
                known: FORMAT,
            });
        }
    }
    let transaction = database.begin_write().map_err(trouble)?;
    {
        let mut records = 0;
        if found.is_some() {
            let mut copy = file.as_os_str().to_owned();
            copy.push(format!(".format-{WITHOUT_SUMS}"));
            rescue::keep(file, Path::new(&copy)).map_err(failed)?;
            records = seal_all(&transaction)?;
        }
        let mut about = transaction.open_table(ABOUT).map_err(trouble)?;
        about.insert(FORMAT_KEY, FORMAT).map_err(trouble)?;
        about.insert(RECORDS_KEY, records).map_err(trouble)?;
        for kind in Kind::ALL {
            transaction.open_table(kind.table()).map_err(trouble)?;
        }
    }
    transaction.commit().map_err(trouble)
}

/// None for a file in which nothing is yet.
fn format_of(database: &Database) -> Result<Option<u64>, StoreError> {
    let transaction = database.begin_read().map_err(trouble)?;
    let about = match transaction.open_table(ABOUT) {
        Err(TableError::TableDoesNotExist(_)) => {
            let mut tables = transaction.list_tables().map_err(trouble)?;
            return match tables.next() {
                None => Ok(None),
                Some(_) => Err(unsound("it does not say of what format it is")),
            };
        }
        about => about.map_err(trouble)?,
    };
    let format = about.get(FORMAT_KEY).map_err(trouble)?;
    match format {
        Some(format) => Ok(Some(format.value())),
        None => Err(unsound("it does not say of what format it is")),
    }
}

/// Gives every record a check sum; how many there are.
fn seal_all(transaction: &WriteTransaction) -> Result<u64, StoreError> {
    let mut count = 0;
    for kind in Kind::ALL {
        let mut table = transaction.open_table(kind.table()).map_err(trouble)?;
        let mut records = Vec::new();
        for row in table.iter().map_err(trouble)? {
            let (name, bytes) = row.map_err(trouble)?;
            kind.decode(name.value(), bytes.value())?;
            records.push((name.value().to_owned(), bytes.value().to_vec()));
        }
        for (name, bytes) in records {
            let sealed = seal::sealed(kind.word(), &name, &bytes);
            table.insert(&*name, &*sealed).map_err(trouble)?;
            count += 1;
        }
    }
    Ok(count)
}

fn write_all(database: &Database, writes: &[Write]) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(trouble)?;
    {
        let mut about = transaction.open_table(ABOUT).map_err(trouble)?;
        let known = about.get(RECORDS_KEY).map_err(trouble)?;
        let mut count = known.map_or(0, |known| known.value());
        // Each table is opened once for all that is written to it; what is of one kind stays in its order.
        for kind in Kind::ALL {
            let mut own = writes
                .iter()
                .filter(|write| write.kind() == kind)
                .peekable();
            if own.peek().is_none() {
                continue;
            }
            let mut table = transaction.open_table(kind.table()).map_err(trouble)?;
            for write in own {
                let existed = match write {
                    Write::Put(record) => {
                        let (name, bytes) = record::encode(record);
                        let sealed = seal::sealed(kind.word(), name, &bytes);
                        count += 1;
                        table.insert(name, &*sealed).map_err(trouble)?.is_some()
                    }
                    Write::ForgetModel(name)
                    | Write::ForgetServer(name)
                    | Write::ForgetExperiment(name)
                    | Write::ForgetPipeline(name) => {
                        table.remove(&**name).map_err(trouble)?.is_some()
                    }
                };
                count = count.saturating_sub(u64::from(existed));
            }
        }
        about.insert(RECORDS_KEY, count).map_err(trouble)?;
    }
    transaction.commit().map_err(trouble)
}

impl Store for Disk {
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
        let Some(database) = &self.database else {
            return Err(failed("it was closed after a failure"));
        };
        guarded(&self.file, || read_all(database)).map(Some)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let file = self.file.clone();
        let database = self.database()?;
        let outcome = guarded(&file, || write_all(database, writes));
        if outcome.is_err() {
            self.close();
        }
        outcome
    }
}

fn read_all(database: &Database) -> Result<Vec<Record>, StoreError> {
    let transaction = database.begin_read().map_err(unsound)?;
    let mut records = Vec::new();
    for kind in Kind::ALL {
        let table = transaction.open_table(kind.table()).map_err(unsound)?;
        for row in table.iter().map_err(unsound)? {
            let (name, sealed) = row.map_err(unsound)?;
            let name = name.value();
            let bytes = seal::opened(kind.word(), name, sealed.value());
            let bytes = bytes
                .ok_or_else(|| record::broken(kind.word(), name, &"its check sum is another"))?;
            records.push(kind.decode(name, bytes)?);
        }
    }
    let about = transaction.open_table(ABOUT).map_err(unsound)?;
    let told = about.get(RECORDS_KEY).map_err(unsound)?.map(|v| v.value());
    if told != u64::try_from(records.len()).ok() {
        let (found, told) = (records.len(), told.unwrap_or_default());
        return Err(unsound(format!(
            "it has {found} records in place of {told}"
        )));
    }
    Ok(records)
}

/// A file that is in use, or may not be read, is not damaged.
fn unreadable(file: &Path, error: DatabaseError) -> StoreError {
    match &error {
        DatabaseError::Storage(StorageError::Io(cause))
            if !matches!(
                cause.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            unopened(file, error)
        }
        DatabaseError::DatabaseAlreadyOpen => unopened(file, error),
        _ => unsound(error),
    }
}

fn unsound(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged {
        path: String::new(),
        cause: error.to_string(),
        copy: String::new(),
    }
}

/// A full disk is not a damaged one.
fn trouble(error: impl Into<redb::Error>) -> StoreError {
    use redb::Error::{
        Corrupted, TableDoesNotExist, TableIsMultimap, TableTypeMismatch, TypeDefinitionChanged,
    };
    match error.into() {
        error @ (Corrupted(_)
        | TableDoesNotExist(_)
        | TableIsMultimap(_)
        | TableTypeMismatch { .. }
        | TypeDefinitionChanged { .. }) => unsound(error),
        error => failed(error),
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
