//! The network namespaces of overlay networks, the only place that enters any.
//!
//! Each is a file on which the namespace is mounted, as `ip netns` does it, so that it outlives the process. Beside it a
//! file `NAME.id` holds the network's id, as ids are longer than names may be and hold any character. The name begins with
//! what of the id an operator recognises and ends with a part of its hash:
//! `nsenter --net=/run/networkdb/netns/web-4b5e57f6eb2f ip -d link`.
//!
//! Which namespace a thread is in concerns all that it opens, so both making and entering happen on threads that end
//! right after.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{process, thread};

use networkdb::NetworkId;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use sha2::{Digest as _, Sha256};

/// Where namespaces are unless said otherwise.
pub const DIR: &str = "/run/networkdb/netns";

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// What the name of a file with an id ends with.
const ID_SUFFIX: &str = ".id";

/// How much of an id is in the name of its file, in bytes.
const NAME_PREFIX_MAX: usize = 24;

/// The type of the file system whose files are namespaces (`NSFS_MAGIC` in linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// What new devices of a namespace begin with: no address of their own making, none learned from routers, no test
/// whether an address is another's (every host has the gateway's).
const DEFAULTS: [(&str, &str); 5] = [
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
];

/// Which namespace a file is: device and inode.
pub(super) type Identity = (u64, u64);

/// The namespaces below a directory.
#[derive(Clone, Debug)]
pub(super) struct Namespaces {
    dir: PathBuf,
}

impl Namespaces {
    /// Takes the directory, which is made when it is needed.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Returns the file of a network's namespace, whether or not it is there.
    pub(super) fn path(&self, network: &NetworkId) -> PathBuf {
        self.dir.join(file_name(network))
    }

    /// Tells which namespace a network has; none if none.
    pub(super) fn identity(&self, network: &NetworkId) -> io::Result<Option<Identity>> {
        identity(&self.path(network))
    }

    /// Opens the namespace of a network; none if it has none.
    pub(super) fn open(&self, network: &NetworkId) -> io::Result<Option<File>> {
        match File::open(self.path(network)) {
            Ok(file) if is_namespace(&file)? => Ok(Some(file)),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Makes the namespace of a network, unless it has one. A file that is none is what a crash left, and is used.
    pub(super) fn make(&self, network: &NetworkId) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        // The id comes first: what has a namespace always has an id.
        self.write_id(network)?;
        if self.identity(network)?.is_some() {
            return Ok(());
        }
        let path = self.path(network);
        File::create(&path)?;
        mount_new(&path, || Ok(()))
    }

    /// Removes the namespace of a network. It lives on while a process is in it or holds a socket of it.
    pub(super) fn remove(&self, network: &NetworkId) -> io::Result<()> {
        let path = self.path(network);
        unmount_all(&path)?;
        remove_file(&path)?;
        remove_file(&self.id_path(network))
    }

    /// Makes a namespace that is nobody's, as [`Namespaces::make`] would, does something in it, and removes it.
    pub(super) fn attempt<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("check-{}", process::id()));
        File::create(&path)?;
        let result = mount_new(&path, work);
        unmount_all(&path)?;
        remove_file(&path)?;
        result
    }

    /// Lists the networks that have a namespace.
    pub(super) fn list(&self) -> io::Result<BTreeSet<NetworkId>> {
        let mut found = BTreeSet::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let has_id = path.to_str().is_some_and(|path| path.ends_with(ID_SUFFIX));
            // Somebody else's file, or one that is being written.
            let Some(network) = has_id.then(|| read_id(&path)).flatten() else {
                continue;
            };
            if self.id_path(&network) == path && self.identity(&network)?.is_some() {
                found.insert(network);
            }
        }
        Ok(found)
    }

    fn id_path(&self, network: &NetworkId) -> PathBuf {
        self.dir.join(format!("{}{ID_SUFFIX}", file_name(network)))
    }

    fn write_id(&self, network: &NetworkId) -> io::Result<()> {
        let path = self.id_path(network);
        if read_id(&path).as_ref() == Some(network) {
            return Ok(());
        }
        let unfinished = path.with_extension("new");
        File::create(&unfinished)?.write_all(network.as_str().as_bytes())?;
        fs::rename(unfinished, path)
    }
}

/// Makes a namespace, mounts it on a file and does something in it.
fn mount_new<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_thread(|| {
        leave()?;
        for (key, value) in DEFAULTS {
            set(key, value)?;
        }
        mount_bind(OWN, path)?;
        work()
    })
}

fn unmount_all(path: &Path) -> io::Result<()> {
    // Mounts may lie on one another.
    while identity(path)?.is_some() {
        unmount(path, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Runs something on a thread of its own in a namespace. Sockets that it opens stay there.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_thread(|| {
        enter(namespace)?;
        work()
    })
}

/// Opens the namespace of the calling thread.
pub(super) fn own() -> io::Result<File> {
    File::open(OWN)
}

/// Writes below `/proc/sys/net` of the calling thread's namespace. What the kernel was built without needs no value, and in
/// a container that may not write there the kernel's own values do, too.
pub(super) fn set(key: &str, value: &str) -> io::Result<()> {
    let is_no_matter = |kind| [ErrorKind::NotFound, ErrorKind::ReadOnlyFilesystem].contains(&kind);
    match fs::write(Path::new("/proc/sys/net").join(key), value) {
        Err(error) if !is_no_matter(error.kind()) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "called on threads that end right after"
)]
fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Leaves the namespace for a new one.
#[expect(
    clippy::disallowed_methods,
    reason = "called on threads that end right after"
)]
fn leave() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned());
        let result = builder.spawn_scoped(scope, work)?.join();
        result.unwrap_or_else(|_| Err(io::Error::other("a thread in a namespace panicked")))
    })
}

/// Tells which namespace is mounted on a file; none if none is, or there is no file.
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match is_namespace(&file)? {
        true => identity_of(&file).map(Some),
        false => Ok(None),
    }
}

/// Tells which namespace a file is that is one.
pub(super) fn identity_of(namespace: &File) -> io::Result<Identity> {
    let metadata = namespace.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn is_namespace(file: &File) -> io::Result<bool> {
    // A type of all bits set, on any kernel, is none of ours.
    let kind = u64::try_from(rustix::fs::fstatfs(file)?.f_type).unwrap_or(u64::MAX);
    Ok(kind == NSFS)
}

fn read_id(path: &Path) -> Option<NetworkId> {
    NetworkId::new(fs::read_to_string(path).ok()?).ok()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Returns the name of the file of a network: the same for ever, as a restart finds namespaces by it.
fn file_name(network: &NetworkId) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    let plain = |byte: u8| {
        if is_plain(&byte) {
            char::from(byte)
        } else {
            '_'
        }
    };
    let bytes = network.as_str().bytes().take(NAME_PREFIX_MAX);
    let mut name: String = bytes.map(plain).collect();
    name.push('-');
    for byte in &Sha256::digest(network.as_str())[..6] {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> NetworkId {
        NetworkId::new(text).unwrap()
    }

    #[test]
    fn names_are_plain_short_stable_and_different() {
        assert_eq!(file_name(&id("web")), "web-4b5e57f6eb2f");
        let ids = [
            "a/b".to_owned(),
            "a_b".to_owned(),
            "..".to_owned(),
            "ä".repeat(120),
            "x".repeat(254),
            "x".repeat(255),
            "ljsmtvd6kwa2395kofyf19vvx".to_owned(),
        ];
        let names: BTreeSet<_> = ids.iter().map(|text| file_name(&id(text))).collect();
        assert_eq!(names.len(), ids.len());
        for name in names {
            assert!(name.len() <= NAME_PREFIX_MAX + 13, "{name}");
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            assert!(name.chars().all(is_plain), "{name}");
        }
    }

    #[test]
    fn files_that_are_no_namespaces_are_no_networks() {
        let dir = tempfile::tempdir().unwrap();
        let all = Namespaces::new(dir.path());
        assert!(all.list().unwrap().is_empty());
        let network = id("net/1");
        all.write_id(&network).unwrap();
        assert_eq!(read_id(&all.id_path(&network)), Some(network.clone()));
        File::create(all.path(&network)).unwrap();
        File::create(dir.path().join("other.id")).unwrap();
        assert!(all.list().unwrap().is_empty());
        assert!(all.open(&network).unwrap().is_none());
        all.remove(&network).unwrap();
        all.remove(&network).unwrap();
        assert!(!all.id_path(&network).exists());
        let nowhere = Namespaces::new(Path::new("/nowhere/at/all"));
        assert!(nowhere.list().unwrap().is_empty());
    }
}
