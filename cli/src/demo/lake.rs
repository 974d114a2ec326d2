//! The demo's folder: catalog, warehouse, configuration, log. It stays behind for looking at.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Status};
use crate::settings::{self, Settings};

/// First line of a configuration that the demo wrote: only such a folder is cleared.
const MARK: &str = "# written by `everlog demo`";

/// The folder, ours alone until this is dropped.
#[derive(Debug)]
pub(super) struct Lake {
    dir: PathBuf,
    _lock: File,
}

impl Lake {
    /// Makes the folder, or clears what an earlier demo left in it.
    pub(super) fn prepare(dir: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::new(
                Status::Failed,
                format!(
                    "demo: {what} {}: {error}; choose another folder with --dir",
                    dir.display()
                ),
            )
        };
        std::fs::create_dir_all(dir).map_err(|e| failed("cannot make", e))?;
        let dir = &std::path::absolute(dir).map_err(|e| failed("cannot use", e))?;
        let config = dir.join("everlog.toml");
        let is_ours = std::fs::read_to_string(&config).is_ok_and(|text| text.starts_with(MARK));
        let mut entries = std::fs::read_dir(dir).map_err(|e| failed("cannot read", e))?;
        if !is_ours && entries.any(|e| e.is_ok_and(|e| e.file_name() != "demo.lock")) {
            return Err(Failure::usage(format!(
                "demo: {} is not empty and no demo wrote it; choose another folder with --dir",
                dir.display()
            )));
        }
        let lock = File::create(dir.join("demo.lock")).map_err(|e| failed("cannot lock", e))?;
        if lock.try_lock().is_err() {
            return Err(Failure::usage(format!(
                "demo: another demo runs in {}; choose another folder with --dir",
                dir.display()
            )));
        }
        for name in [
            "warehouse",
            "catalog.db",
            "catalog.db-wal",
            "catalog.db-shm",
            "archiver.log",
        ] {
            let path = dir.join(name);
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else if path.exists() {
                std::fs::remove_file(&path)
            } else {
                Ok(())
            };
            removed.map_err(|e| failed("cannot clear", e))?;
        }
        Ok(Self {
            dir: dir.clone(),
            _lock: lock,
        })
    }

    /// Writes the configuration and reads it back like every command does.
    pub(super) fn configure(&self, bootstrap: &str, topic: &str) -> Result<Settings, Failure> {
        let dir = self.dir.display();
        // Nothing in it but what a user would write; a path may hold anything, so TOML quotes it.
        let quoted = |text: String| toml::Value::String(text).to_string();
        let text = format!(
            "{MARK}; its broker is gone, the tables are not\n\
             [kafka]\n\
             \"bootstrap.servers\" = {}\n\
             \"fetch.wait.max.ms\" = 10\n\
             \n\
             [catalog]\n\
             type = \"sql\"\n\
             uri = {}\n\
             warehouse = {}\n\
             \n\
             [archive]\n\
             topics = [{}]\n\
             commit_interval = \"1s\"\n\
             memory = \"128MiB\"\n\
             http = \"127.0.0.1:0\"\n",
            quoted(bootstrap.to_owned()),
            quoted(format!("sqlite://{dir}/catalog.db")),
            quoted(format!("file://{dir}/warehouse")),
            quoted(topic.to_owned()),
        );
        std::fs::write(self.config(), text)?;
        let document = settings::read(Some(&self.config()), std::iter::empty())?;
        Ok(document.settings(settings::Needs::ALL)?)
    }

    /// The configuration's path.
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("everlog.toml")
    }

    /// Where the archiver writes its log.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("archiver.log")
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let refused = Lake::prepare(dir.path()).unwrap_err();
        assert!(
            refused.to_string().contains("no demo wrote it"),
            "{refused}"
        );
        assert!(dir.path().join("thesis.txt").exists());
    }

    #[test]
    fn an_earlier_demo_is_cleared_and_a_running_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let lake = Lake::prepare(dir.path()).unwrap();
        lake.configure("127.0.0.1:9", "clicks").unwrap();
        std::fs::create_dir(dir.path().join("warehouse")).unwrap();
        let refused = Lake::prepare(dir.path()).unwrap_err();
        assert!(
            refused.to_string().contains("another demo runs"),
            "{refused}"
        );
        drop(lake);
        let lake = Lake::prepare(dir.path()).unwrap();
        assert!(!lake.dir().join("warehouse").exists());
    }
}
