//! Whether namespaces are mounted where the rest of the host sees them.
//!
//! A namespace is a mount, and mounts are seen in the mount namespace in which they are made, and in those that share the
//! mount below with it. What runs with `PrivateMounts=` of systemd, or in a container, has one of its own.

use std::fs;
use std::path::{Path, PathBuf};

/// A line of `/proc/PID/mountinfo`, as far as it matters (proc_pid_mountinfo(5)).
#[derive(Debug, Eq, PartialEq)]
struct Mount<'a> {
    /// No other mount has it, in whatever mount namespace.
    id: &'a str,
    point: &'a str,
    /// The group of mounts that see what is mounted below each of them.
    group: Option<&'a str>,
    /// The group whose mounts are seen here, too.
    from: Option<&'a str>,
}

/// Tells whether what is mounted below a directory is seen by this process and its children alone; none when that cannot be
/// told, as in a container that does not see the first process of the host.
#[must_use]
pub fn are_private(dir: &Path) -> Option<bool> {
    let mounts = |of: &str| fs::read_to_string(format!("/proc/{of}/mountinfo")).ok();
    Some(!is_shared(&existing(dir)?, &mounts("self")?, &mounts("1")?))
}

/// Returns the part of a path that is there, without symbolic links.
fn existing(dir: &Path) -> Option<PathBuf> {
    let mut parts = dir.ancestors();
    parts.find_map(|part| part.canonicalize().ok())
}

/// Tells whether mounts below a directory of ours come up among theirs.
fn is_shared(dir: &Path, ours: &str, theirs: &str) -> bool {
    let below = ours.lines().filter_map(Mount::parse);
    let below = below.filter(|mount| dir.starts_with(unescaped(mount.point)));
    // Of mounts on one point the last one lies on top.
    let nearest = below.max_by_key(|mount| mount.point.len());
    let Some(nearest) = nearest else {
        return false;
    };
    let mut theirs = theirs.lines().filter_map(Mount::parse);
    theirs.any(|mount| {
        let is_group =
            nearest.group.is_some() && [mount.group, mount.from].contains(&nearest.group);
        mount.id == nearest.id || is_group
    })
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?;
        let point = fields.nth(3)?;
        let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
        let tagged = |tag: &str| optional.iter().find_map(|field| field.strip_prefix(tag));
        Some(Self {
            id,
            point,
            group: tagged("shared:"),
            from: tagged("master:"),
        })
    }
}

/// Reads a path in which the kernel has written some characters as octal numbers.
fn unescaped(point: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut text = point.to_owned();
    for (code, plain) in escapes {
        text = text.replace(code, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:23 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
";

    fn told(ours: &str) -> bool {
        is_shared(Path::new("/run/networkdb/netns"), ours, HOST)
    }

    #[test]
    fn the_mount_below_decides() {
        assert!(told(HOST));
        // The very mount, as in the host's own mount namespace.
        assert!(told("25 22 0:23 / /run rw,nosuid - tmpfs tmpfs rw\n"));
        // A group of the host's mounts, as with `rshared`.
        assert!(told(
            "30 29 0:23 / / rw - ext4 x rw\n31 30 0:23 / /run rw shared:5 - tmpfs tmpfs rw\n"
        ));
        // Private, or one that only receives, or a group that the host has no mount of.
        assert!(!told(
            "30 29 0:23 / / rw shared:1 - ext4 x rw\n31 30 0:23 / /run rw - tmpfs tmpfs rw\n"
        ));
        assert!(!told("30 29 0:23 / /run rw master:5 - tmpfs tmpfs rw\n"));
        assert!(!told("30 29 0:23 / / rw shared:90 - ext4 x rw\n"));
        // Another mount, whose name begins alike.
        assert!(told(
            "30 29 0:23 / / rw shared:1 - ext4 x rw\n31 30 0:23 / /run/net rw - tmpfs tmpfs rw\n"
        ));
        assert!(!told(""));
    }

    #[test]
    fn points_with_spaces_are_read() {
        let ours = "31 30 0:23 / /my\\040dir rw shared:5 - tmpfs tmpfs rw";
        assert!(is_shared(Path::new("/my dir/netns"), ours, HOST));
    }
}
