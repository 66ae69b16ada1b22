//! Writes the archives that a kernel unpacks into its memory: cpio of the kind `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// Kinds of entries in their modes (`S_IFDIR` and so on).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// What ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written. The first entry of a path counts. Archives can be joined.
#[derive(Debug)]
pub(super) struct Archive<W> {
    to: W,
    /// The number of the last entry.
    last: u32,
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Begins one.
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            last: 0,
            names: BTreeSet::new(),
        }
    }

    /// Writes a directory and those above it.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Writes a file of the permissions `mode`.
    pub(super) fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.parent(path)?;
        self.entry(path, FILE | (mode & 0o7777), content)
    }

    /// Writes a symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &str) -> Result<()> {
        self.parent(path)?;
        self.entry(path, LINK | 0o777, to.as_bytes())
    }

    /// Copies a file or a directory of this machine, and the libraries that it needs if it is a program.
    pub(super) fn copy(&mut self, from: &Path, path: &Path) -> Result<()> {
        self.copy_plainly(from, path)?;
        if from.is_file() {
            for library in libraries(from)? {
                let library = Path::new(&library);
                self.copy_plainly(library, library)?;
            }
        }
        Ok(())
    }

    /// Copies a file or a directory as it is; of links, what they lead to.
    pub(super) fn copy_plainly(&mut self, from: &Path, path: &Path) -> Result<()> {
        let what = || format!("read {}", from.display());
        let metadata = fs::metadata(from).with_context(what)?;
        if !metadata.is_dir() {
            let content = fs::read(from).with_context(what)?;
            return self.file(path, metadata.permissions().mode(), &content);
        }
        self.directory(path)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(from).with_context(what)? {
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names {
            self.copy_plainly(&from.join(&name), &path.join(&name))?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write(TRAILER, 0, &[])?;
        Ok(self.to.flush()?)
    }

    fn parent(&mut self, path: &Path) -> Result<()> {
        self.directory(path.parent().context("a file is in a directory")?)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy()),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        });
        let name = parts.collect::<Vec<_>>().join("/");
        // The root is there.
        if name.is_empty() || !self.names.insert(name.clone()) {
            return Ok(());
        }
        self.write(&name, mode, content)
    }

    fn write(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.last += 1;
        let size = u32::try_from(content.len()).context("a file of less than 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Number, mode, owner, group, links, time, size, device, special device, length of the name, checksum.
        let fields = [self.last, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend(name.as_bytes());
        header.push(0);
        header.resize(header.len().next_multiple_of(4), 0);
        self.to.write_all(&header)?;
        self.to.write_all(content)?;
        let padding = content.len().next_multiple_of(4) - content.len();
        Ok(self.to.write_all(&[0; 3][..padding])?)
    }
}

/// Lists the libraries that a program needs; none of what is no program, or needs none.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    let paths = words.map(|word| word.trim_end_matches(':').to_owned());
    // Of what it cannot read, it says the name.
    Ok(paths.filter(|path| Path::new(path) != program).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_as_the_kernel_reads_it() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/a/b"), 0o755, b"hello").unwrap();
        archive.file(Path::new("/a/b"), 0o644, b"again").unwrap();
        archive.link(Path::new("/a/c"), "b").unwrap();
        archive.finish().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert_eq!(text.matches("070701").count(), 4);
        assert!(!text.contains("again"));
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        // Directory, then file: header of 110 bytes, name, and padding to four.
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(&bytes[112 + 14..112 + 22], b"000081ed");
        assert_eq!(&bytes[112 + 110..112 + 114], b"a/b\0");
        assert_eq!(&bytes[112 + 116..112 + 124], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn programs_come_with_their_libraries() {
        let program = std::env::current_exe().unwrap();
        let found = libraries(&program).unwrap();
        assert!(found.iter().any(|path| path.contains("libc")), "{found:?}");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(libraries(&source).unwrap().is_empty());
    }
}
