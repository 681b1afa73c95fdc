//! A small disk for tests: a tmpfs in a separate mount namespace, which the test can fill to the
//! last byte without the machine noticing. It needs root, or a kernel that lets users have
//! namespaces.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::service::Service;

const MOUNT: &str =
    r#"mount -t tmpfs -o "size=$2m" tmpfs "$1" && echo mounted && exec sleep infinity"#;

/// The flags that let a user who isn't root mount.
const AS_USER: [&str; 2] = ["--user", "--map-root-user"];

/// A disk of some MiB. Dropping it takes it away.
pub struct SmallDisk {
    /// Where it is seen from outside: by way of the process that holds the namespace.
    path: PathBuf,
    holder: Service,
}

impl std::fmt::Debug for SmallDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SmallDisk").field(&self.path).finish()
    }
}

impl SmallDisk {
    /// Mounts one of `mib` MiB at `folder`, in a separate namespace.
    pub fn mount(folder: &Path, mib: u32) -> Self {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(AS_USER);
        }
        command.args(["--mount", "sh", "-c", MOUNT, "mount"]).arg(folder).arg(mib.to_string());
        let holder = Service::start("small disk", &mut command, "KILL", None);
        holder.wait_for(|line| (line == "mounted").then_some(()));
        let path = PathBuf::from(format!("/proc/{}/root{}", holder.id(), folder.display()));
        let disk = rustix::fs::statvfs(&path).expect("the disk is mounted");
        assert!(
            disk.f_blocks * disk.f_frsize <= u64::from(mib) << 20,
            "{} is another disk",
            path.display()
        );
        Self { path, holder }
    }

    /// Returns where the test sees it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same command, run where the disk is mounted.
    pub fn inside(&self, command: &Command) -> Command {
        let holder = self.holder.id();
        let mut inside = Command::new("nsenter");
        if !rustix::process::geteuid().is_root() {
            inside.arg(format!("--user=/proc/{holder}/ns/user")).arg("--preserve-credentials");
        }
        inside.arg(format!("--mount=/proc/{holder}/ns/mnt")).arg("--").arg(command.get_program());
        inside.args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Writes a file as large as the disk takes.
    pub fn fill(&self) {
        let mut file = self.filler();
        // The last bytes go in small pieces.
        for piece in [64 * 1024, 4096] {
            while file.write_all(&vec![b'x'; piece]).is_ok() {}
        }
    }

    /// Writes a file that leaves about so many bytes free.
    pub fn fill_but(&self, free: u64) {
        let stat = rustix::fs::statvfs(&self.path).expect("the disk is mounted");
        let bytes = (stat.f_bavail * stat.f_frsize).saturating_sub(free);
        let rest = usize::try_from(bytes).expect("a small disk");
        self.filler().write_all(&vec![b'x'; rest]).expect("the disk has as much");
    }

    /// Removes what fills the disk.
    pub fn clear(&self) {
        std::fs::remove_file(self.path.join("filler")).expect("the disk was filled");
    }

    fn filler(&self) -> File {
        let options = OpenOptions::new().append(true).create(true).open(self.path.join("filler"));
        options.expect("a file on the small disk")
    }
}
