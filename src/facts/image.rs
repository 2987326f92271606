//! What is in an image: its Postgres, its users, its C library. Found by looking into the union of its layers,
//! and remembered by digest: an image never changes.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Dir, FileType, OFlags};
use serde::{Deserialize, Serialize};

use crate::{
    image::{Image, Store, user},
    plan::{ImageFacts, PostgresFacts},
    postgres::{launch::User, version},
    state::Root,
    sys::{
        mount::{self, Jail},
        overlay,
    },
};

/// What was found in an image, as remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Findings {
    postgres: Option<PostgresFacts>,
    /// The image's USER; none for an image without one.
    user: Option<User>,
}

/// The facts of an image, from memory or by looking into it (root only).
pub fn facts(root: &Root, image: &Image) -> Result<ImageFacts> {
    let store = Store::open(root.path())?;
    let known = store.noted(&image.manifest).and_then(|note| serde_json::from_slice::<Findings>(&note).ok());
    let env = environment(image);
    let findings = match known {
        Some(findings) => findings,
        None => {
            let lowers = image.lowers();
            let found = look_inside(&lowers, root.path(), |jail| find(jail, &env, &image.config.user))
                .with_context(|| format!("look into image {}", image.name()))?;
            // Only to know it sooner next time; another command may write the same at this moment.
            let _ = store.note(&image.manifest, &serde_json::to_vec(&found)?);
            found
        }
    };
    let workdir = &image.config.working_dir;
    Ok(ImageFacts {
        digest: image.manifest.to_string(),
        lowers: image.lowers(),
        env,
        workdir: (!workdir.is_empty()).then(|| PathBuf::from(workdir)),
        user: findings.user,
        postgres: findings.postgres,
    })
}

fn environment(image: &Image) -> Vec<(String, String)> {
    let split = |entry: &String| entry.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    image.config.env.iter().filter_map(split).collect()
}

/// Runs `f` on the union of the layers, mounted where nobody else sees it: in a mount namespace that ends
/// with a short-lived thread.
fn look_inside<T: Send>(
    lowers: &[PathBuf],
    place: &Path,
    f: impl FnOnce(&Jail) -> Result<T> + Send,
) -> Result<T> {
    let look = || -> Result<T> {
        // A thread may have a mount namespace of its own once it shares no working directory (unshare(2)).
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        mount::make_private()?;
        overlay::mount(lowers, None, place, overlay::Options { volatile: false, read_only: true })?;
        f(&Jail::open(place)?)
    };
    // This process may become pid 1 of a node.
    crate::sys::memory::share_heap();
    std::thread::scope(|scope| match scope.spawn(look).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn find(jail: &Jail, env: &[(String, String)], image_user: &str) -> Result<Findings> {
    let root = jail.resolve(Path::new("/")).context("open the image's root")?;
    let user = (!image_user.is_empty()).then(|| lookup(&root, image_user)).transpose()?;
    let Some(bindir) = candidates(jail, env).into_iter().find(|dir| has_server(jail, dir)) else {
        return Ok(Findings { postgres: None, user });
    };
    // An image that names an unprivileged user runs Postgres as that one.
    let server_user = match user.clone().filter(|u| u.uid != 0) {
        Some(user) => user,
        None => lookup(&root, "postgres")
            .context("Postgres refuses to run as root, and the image has no user `postgres`")?,
    };
    let postgres =
        PostgresFacts { major: major(jail, &bindir)?, bindir, user: server_user, libc: libc_version(jail) };
    Ok(Findings { postgres: Some(postgres), user })
}

fn lookup(root: &OwnedFd, spec: &str) -> Result<User> {
    let ids = user::lookup(root.as_fd(), spec)?;
    Ok(User { uid: ids.uid, gid: ids.gid, groups: ids.groups, name: ids.name, home: PathBuf::from(ids.home) })
}

/// Directories that may hold `postgres`, the likeliest first.
fn candidates(jail: &Jail, env: &[(String, String)]) -> Vec<PathBuf> {
    let path = env.iter().find(|(k, _)| k == "PATH").map(|(_, v)| v.as_str()).unwrap_or_default();
    let mut dirs: Vec<PathBuf> = path.split(':').filter(|d| d.starts_with('/')).map(PathBuf::from).collect();
    dirs.extend(versions(jail, "/usr/lib/postgresql", "", "bin"));
    dirs.extend(versions(jail, "/usr", "pgsql-", "bin"));
    dirs.extend(
        ["/usr/local/bin", "/usr/local/pgsql/bin", "/usr/bin", "/opt/bitnami/postgresql/bin"]
            .map(PathBuf::from),
    );
    dirs
}

/// `PARENT/PREFIXn/LEAF` for each number n, highest first.
fn versions(jail: &Jail, parent: &str, prefix: &str, leaf: &str) -> Vec<PathBuf> {
    let open = jail.open_at(Path::new(parent), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC);
    let Some(dir) = open.ok().and_then(|fd| Dir::read_from(fd).ok()) else { return Vec::new() };
    let number = |name: &std::ffi::CStr| name.to_str().ok()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut numbers: Vec<u32> = dir.flatten().filter_map(|entry| number(entry.file_name())).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.into_iter().map(|n| Path::new(parent).join(format!("{prefix}{n}")).join(leaf)).collect()
}

fn has_server(jail: &Jail, dir: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|name| {
        let file = jail.resolve(&dir.join(name)).and_then(rustix::fs::fstat);
        file.is_ok_and(|s| FileType::from_raw_mode(s.st_mode).is_file())
    })
}

/// The major version, from the text that `postgres --version` prints: it stands in the program file.
fn major(jail: &Jail, bindir: &Path) -> Result<u32> {
    const MARK: &[u8] = b"postgres (PostgreSQL) ";
    let bytes = read(jail, &bindir.join("postgres"))?;
    let Some(at) = find_bytes(&bytes, MARK) else {
        bail!("{}/postgres holds no version", bindir.display());
    };
    let text: Vec<u8> =
        bytes[at..].iter().copied().take_while(|b| b.is_ascii_graphic() || *b == b' ').collect();
    version::parse_version_output(&String::from_utf8_lossy(&text))
}

/// The C library's name and version, as it tells them itself when it is run as a program.
fn libc_version(jail: &Jail) -> Option<String> {
    const MARK: &[u8] = b"stable release version ";
    let machine = std::env::consts::ARCH;
    let places =
        [format!("/lib/{machine}-linux-gnu/libc.so.6"), "/lib64/libc.so.6".into(), "/lib/libc.so.6".into()];
    if let Some(bytes) = places.iter().find_map(|p| read(jail, Path::new(p)).ok()) {
        let at = find_bytes(&bytes, MARK)? + MARK.len();
        let version: String =
            bytes[at..].iter().map(|b| *b as char).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        return Some(format!("glibc {}", version.trim_end_matches('.')));
    }
    jail.resolve(Path::new(&format!("/lib/ld-musl-{machine}.so.1"))).is_ok().then(|| "musl".to_owned())
}

/// Programs and libraries are some megabytes; whatever is larger than this is no such thing.
const MOST: u64 = 256 << 20;

fn read(jail: &Jail, path: &Path) -> Result<Vec<u8>> {
    let fd = jail.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC);
    let file = File::from(fd.with_context(|| format!("open {} in the image", path.display()))?);
    let mut bytes = Vec::new();
    file.take(MOST)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {} in the image", path.display()))?;
    Ok(bytes)
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
