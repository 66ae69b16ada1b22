//! The archive: one gzipped tar file that appears under its name when it is whole, and never in place of another.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::names;
use super::scrub::Scrubber;

/// Bytes of all files together; what comes after them is left out, and the manifest says so.
const TOTAL_BYTES_MAX: usize = 256 << 20;

/// Where the archive goes.
#[derive(Debug)]
enum Target {
    Stdout,
    /// Written beside its place under another name.
    File {
        path: PathBuf,
        temporary: PathBuf,
    },
}

/// An archive that is being written. Dropped before its end it leaves nothing behind.
pub(super) struct Archive {
    target: Target,
    top: String,
    tar: Option<Builder<GzEncoder<Box<dyn Write + Send>>>>,
    /// Seconds since the epoch, for every file.
    time: u64,
    scrubber: Scrubber,
    manifest: Vec<String>,
    bytes: usize,
    left_out: usize,
}

/// A text for the archive.
#[derive(Debug)]
pub(super) struct Piece {
    /// Path below the archive's directory; parts that others named have passed [`names::file`].
    pub(super) path: String,
    /// The command or URL that it is from.
    pub(super) source: String,
    pub(super) text: String,
    pub(super) taken: Duration,
}

impl Archive {
    /// Begins an archive; `-` is stdout.
    pub(super) fn create(output: &Path, top: &str, time: u64, scrubber: Scrubber) -> Result<Self> {
        let (target, sink) = if output == Path::new("-") {
            if io::stdout().is_terminal() {
                bail!("--output -: an archive is nothing for a terminal");
            }
            let sink: Box<dyn Write + Send> = Box::new(io::stdout());
            (Target::Stdout, sink)
        } else {
            let (target, file) = begin_file(output)?;
            (target, Box::new(file) as Box<dyn Write + Send>)
        };
        let encoder = GzEncoder::new(sink, Compression::default());
        Ok(Self {
            target,
            top: top.to_owned(),
            tar: Some(Builder::new(encoder)),
            time,
            scrubber,
            manifest: vec!["file\tcommand or URL\tbytes\tseconds".into()],
            bytes: 0,
            left_out: 0,
        })
    }

    /// Adds a file, cleaned of keys.
    pub(super) fn add(&mut self, piece: &Piece) -> Result<()> {
        let text = self.scrubber.scrub(&piece.text);
        let seconds = piece.taken.as_secs_f64();
        let source = names::line(&piece.source);
        let path = &piece.path;
        if self.bytes + text.len() > TOTAL_BYTES_MAX {
            self.left_out += 1;
            let why = format!("{path}\t{source}\tleft out, the archive is full\t{seconds:.3}");
            self.manifest.push(self.scrubber.scrub(&why));
            return Ok(());
        }
        self.bytes += text.len();
        let bytes = text.len();
        let line = format!("{path}\t{source}\t{bytes}\t{seconds:.3}");
        self.manifest.push(self.scrubber.scrub(&line));
        self.append(path, &text)
    }

    /// Returns how many files the archive had no room for.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    /// Writes the manifest and gives the archive its name. Returns how many files are in it.
    pub(super) fn finish(mut self) -> Result<usize> {
        let files = self.manifest.len() - self.left_out;
        let manifest = self.manifest.join("\n") + "\n";
        self.append("MANIFEST.txt", &manifest)?;
        let tar = self.tar.take().context("an archive ends once")?;
        let written = tar.into_inner().and_then(GzEncoder::finish);
        written
            .and_then(|mut sink| sink.flush())
            .context("cannot write the archive")?;
        if let Target::File { path, temporary } = &self.target {
            File::open(temporary)
                .and_then(|file| file.sync_all())
                .context("cannot write the archive")?;
            place(temporary, path)?;
        }
        Ok(files)
    }

    fn append(&mut self, path: &str, text: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{path}", self.top);
        let tar = self.tar.as_mut().context("an archive ends once")?;
        tar.append_data(&mut header, path, text.as_bytes())
            .context("cannot write the archive")
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("target", &self.target)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Target::File { temporary, .. } = &self.target {
            // After the end it is gone already.
            drop(fs::remove_file(temporary));
        }
    }
}

/// Makes the file that is written until the archive is whole, readable by its owner only.
fn begin_file(output: &Path) -> Result<(Target, File)> {
    refuse_existing(output)?;
    let name = output
        .file_name()
        .with_context(|| format!("--output {} names no file", output.display()))?;
    let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
    let temporary = output.with_file_name(name);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("cannot write to {}", output.display()))?;
    let path = output.to_owned();
    Ok((Target::File { path, temporary }, file))
}

fn refuse_existing(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        bail!(
            "{} exists already and stays as it is: give another with --output",
            path.display()
        );
    }
    Ok(())
}

/// Gives the whole file its name, unless something has that meanwhile.
fn place(temporary: &Path, path: &Path) -> Result<()> {
    // A rename would replace what is there; a second name for the file does not.
    match fs::hard_link(temporary, path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refuse_existing(path),
        // Some file systems know one name only.
        Err(_) => {
            refuse_existing(path)?;
            fs::rename(temporary, path)
                .with_context(|| format!("cannot write to {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use flate2::read::GzDecoder;

    use super::*;

    fn piece(path: &str, text: &str) -> Piece {
        Piece {
            path: path.into(),
            source: "cat\tx".into(),
            text: text.into(),
            taken: Duration::from_millis(1_500),
        }
    }

    fn begin(output: &Path) -> Result<Archive> {
        Archive::create(output, "top", 1_000, Scrubber::default())
    }

    #[test]
    fn files_come_back_below_one_directory_with_a_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("x.tar.gz");
        let mut archive = begin(&output).unwrap();
        archive.add(&piece("a/b.txt", "hello\n")).unwrap();
        assert!(!output.exists(), "not before it is whole");
        assert_eq!(archive.finish().unwrap(), 2);
        let mode = fs::metadata(&output).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut tar = tar::Archive::new(GzDecoder::new(File::open(&output).unwrap()));
        let mut files = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.push((path, text));
        }
        assert_eq!(files[0], ("top/a/b.txt".into(), "hello\n".into()));
        let manifest = "file\tcommand or URL\tbytes\tseconds\na/b.txt\tcat\\u{9}x\t6\t1.500\n";
        assert_eq!(files[1], ("top/MANIFEST.txt".into(), manifest.into()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_replaced_and_nothing_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("x.tar.gz");
        fs::write(&output, "mine").unwrap();
        let error = begin(&output).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        fs::remove_file(&output).unwrap();
        let archive = begin(&output).unwrap();
        fs::write(&output, "mine").unwrap();
        assert!(archive.finish().is_err(), "another came first");
        assert_eq!(fs::read_to_string(&output).unwrap(), "mine");
        fs::remove_file(&output).unwrap();
        drop(begin(&output).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
