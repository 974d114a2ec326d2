//! A file that appears under its name only once it is whole.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// What a new file may be used for, before the mask of the process.
const MODE: u32 = 0o666;
/// Of a mode, what who may do what is.
const PERMISSIONS: u32 = 0o777;

/// A file on its way.
///
/// - Under its name there is the old file, or none, until [`PartFile::commit`]; then the new one, whole and on the disk.
/// - Dropped before, it leaves nothing. Killed, the process leaves a file whose name begins with a dot and ends with `.part`.
/// - What is no regular file (a device, a pipe) is written to as it is: nothing may take its place.
#[derive(Debug)]
pub struct PartFile {
    to: Option<PathBuf>,
    part: Option<NamedTempFile>,
    file: File,
}

impl PartFile {
    /// Begins a file beside `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        // a link stays, and leads to the new file
        let to = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mode = match std::fs::metadata(&to) {
            Ok(found) if found.is_dir() => {
                return Err(io::Error::new(
                    io::ErrorKind::IsADirectory,
                    "it is a folder",
                ));
            }
            Ok(found) if !found.is_file() => {
                let file = File::options().write(true).open(&to)?;
                return Ok(Self {
                    to: None,
                    part: None,
                    file,
                });
            }
            found => found
                .ok()
                .map(|found| found.permissions().mode() & PERMISSIONS),
        };
        let name = to
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
        let folder = match to.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let part = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".part")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(folder)?;
        if let Some(mode) = mode {
            // nobody may read the new file who could not read the old one
            part.as_file()
                .set_permissions(Permissions::from_mode(mode))?;
        }
        let file = part.as_file().try_clone()?;
        Ok(Self {
            to: Some(to),
            part: Some(part),
            file,
        })
    }

    /// What writes into it; several write one after the other.
    pub fn sink(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(Box::new(BufWriter::with_capacity(
            256 << 10,
            self.file.try_clone()?,
        )))
    }

    /// Puts it under its name.
    pub fn commit(mut self) -> io::Result<()> {
        let (Some(to), Some(part)) = (self.to.take(), self.part.take()) else {
            return Ok(());
        };
        self.file.sync_all()?;
        part.persist(&to).map_err(|error| error.error)?;
        Ok(())
    }
}
