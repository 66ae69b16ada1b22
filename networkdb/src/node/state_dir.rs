//! The state directory: what a node keeps over restarts, in one small JSON file that is replaced as a whole.
//!
//! The file holds the node's id, its last generation, ceilings of both clocks and its attachments. It is written to a
//! temporary file, synced and renamed, so that a crash leaves the old one or the new one. A lock file keeps two processes
//! from running one node.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::Persistent;
use crate::id::NodeId;

/// Why the state directory cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// The directory or a file in it cannot be made, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not one that this program wrote.
    #[error("{path}: {source}; move the file away to start as a new node")]
    Damaged {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another process runs this node.
    #[error("{path} is locked, another process uses this state directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// What the file holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Of this format.
    version: u32,
    pub node_id: NodeId,
    pub last_run: Persistent,
}

impl State {
    pub(crate) fn new(node_id: NodeId, last_run: Persistent) -> Self {
        Self {
            version: 1,
            node_id,
            last_run,
        }
    }
}

/// A locked state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    file: PathBuf,
    temporary: PathBuf,
    /// Locked until it is dropped.
    _lock: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StateDirError + '_ {
    move |source| StateDirError::Io {
        path: path.to_owned(),
        source,
    }
}

impl StateDir {
    /// Makes the directory if it is missing, locks it and reads what the last run left.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Option<State>), StateDirError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateDirError::Locked { path: lock_path });
            }
            Err(TryLockError::Error(source)) => return Err(at(&lock_path)(source)),
        }
        let state_dir = Self {
            file: dir.join("node.json"),
            temporary: dir.join("node.json.tmp"),
            _lock: lock,
        };
        let state = match fs::read(&state_dir.file) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes);
                Some(state.map_err(|source| StateDirError::Damaged {
                    path: state_dir.file.clone(),
                    source,
                })?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(&state_dir.file)(error)),
        };
        Ok((state_dir, state))
    }

    /// Replaces the file.
    pub(crate) fn store(&self, state: &State) -> Result<(), StateDirError> {
        let bytes = serde_json::to_vec_pretty(state).expect("plain data has a JSON form");
        let write = || {
            let mut file = File::create(&self.temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&self.temporary, &self.file)
        };
        write().map_err(at(&self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;

    fn state() -> State {
        let last_run = Persistent {
            generation: Generation(7),
            ..Persistent::default()
        };
        State::new(NodeId::new("n").unwrap(), last_run)
    }

    #[test]
    fn what_is_stored_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (state_dir, found) = StateDir::open(dir.path()).unwrap();
        assert_eq!(found, None);
        state_dir.store(&state()).unwrap();
        drop(state_dir);
        assert_eq!(StateDir::open(dir.path()).unwrap().1, Some(state()));
    }

    #[test]
    fn two_processes_cannot_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _held = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err();
        assert!(matches!(refused, StateDirError::Locked { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.json"), b"{\"version\":1").unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("node.json"), "{refused}");
    }
}
