//! The demo's folder: catalog, warehouse, configuration, jobs, logs. It stays behind for looking at.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Status};
use crate::settings::{self, Settings};

/// What the demo's processes are called, and the files of each.
pub(super) const PROCESSES: [&str; 4] = [ARCHIVER, SILVER, GOLD_V1, GOLD_V2];
/// `everlog archive`.
pub(super) const ARCHIVER: &str = "archiver";
/// The job that makes clean events of raw ones.
pub(super) const SILVER: &str = "silver";
/// The job that makes sessions of those, by its two versions.
pub(super) const GOLD_V1: &str = "sessions-v1";
pub(super) const GOLD_V2: &str = "sessions-v2";
const DEAD_LETTERS: &str = "silver-dead-letters.jsonl";

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
        let ours = [
            "warehouse",
            "jobs",
            "catalog.db",
            "catalog.db-wal",
            "catalog.db-shm",
            DEAD_LETTERS,
        ];
        let logs = PROCESSES.map(|name| format!("{name}.log"));
        let jobs = PROCESSES.map(|name| format!("{name}.toml"));
        for name in ours
            .into_iter()
            .chain(logs.iter().chain(&jobs).map(String::as_str))
        {
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
    pub(super) fn configure(&self, bootstrap: &str, topics: &[&str]) -> Result<Settings, Failure> {
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
             topics = {}\n\
             commit_interval = \"1s\"\n\
             memory = \"128MiB\"\n\
             http = \"127.0.0.1:0\"\n\
             {}",
            quoted(bootstrap.to_owned()),
            quoted(format!("sqlite://{dir}/catalog.db")),
            quoted(format!("file://{dir}/warehouse")),
            toml::Value::from(topics.to_vec()),
            topics.iter().map(|topic| decode(topic)).collect::<String>(),
        );
        std::fs::write(self.config(), text)?;
        let document = settings::read(Some(&self.config()), std::iter::empty())?;
        Ok(document.settings(settings::Needs::ALL)?)
    }

    /// The configuration's path.
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("everlog.toml")
    }

    /// Writes a job's file, and gives its path.
    pub(super) fn write_job(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.job(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A job's file.
    pub(super) fn job(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    /// Where the state of jobs is.
    pub(super) fn location(&self) -> String {
        format!("file://{}/jobs", self.dir.display())
    }

    /// Where what could not be read goes.
    pub(super) fn dead_letters(&self) -> PathBuf {
        self.dir.join(DEAD_LETTERS)
    }

    /// Where a process of the demo writes its log.
    pub(super) fn log(&self, process: &str) -> PathBuf {
        self.dir.join(format!("{process}.log"))
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What the topic's values are like, for the views of `everlog sql`.
fn decode(topic: &str) -> String {
    format!(
        "\n[decode.\"{topic}\"]\n\
         format = \"json\"\n\
         columns = {{ event_id = \"STRING\", user_id = \"STRING\", product_id = \"STRING\", event_type = \"STRING\", timestamp_ms = \"BIGINT\" }}\n"
    )
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
        lake.configure("127.0.0.1:9", &["clicks", "clean"]).unwrap();
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
