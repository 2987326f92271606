//! `pgbox image build`: a recipe's shell scripts make root file systems, each one's difference to the
//! one below becomes a layer, and the layers an OCI image layout. No container engine takes part.
//!
//! Facilities: mount_namespaces(7), pid_namespaces(7), overlayfs, tmpfs(5); unshare(1) and setpriv(1) of
//! util-linux. The rule that surprises people: unshare(2) moves the calling *thread* alone into the new
//! mount namespace. So the build runs on a thread of its own, the scripts are its children, and when it
//! ends, in whatever way, the kernel takes every mount back, the tmpfs with the half-built root included;
//! nothing was ever mounted on the host. The scripts run in a PID namespace whose first process dies with
//! this thread, so an interrupted build leaves no apt behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use oci_spec::image::{
    Arch, Descriptor, Digest, History, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder,
    ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder, SCHEMA_VERSION,
};

pub use super::build_layout::Compression;
use super::build_layout::Layout;
pub use super::build_recipe::Recipe;
use super::build_recipe::{ImageJson, Script};
use super::pack::Packed;

/// The suite whose image is plain `postgres`.
pub const DEFAULT_SUITE: &str = "bookworm";

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Which image.
    pub recipe: Recipe,
    /// Debian release: `bookworm`, `trixie`, `forky`, … ([`DEFAULT_SUITE`]). It decides the versions.
    pub suite: String,
    /// Directory of the image layout. It is made if absent; other images in it stay.
    pub output: PathBuf,
    /// Of the layers.
    pub compression: Compression,
    /// Build on disk in `OUTPUT/.work` and leave it there to look at, instead of in a tmpfs. Takes
    /// minutes instead of seconds, and no memory.
    pub keep: bool,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct Built {
    /// The layout's directory, absolute.
    pub layout: PathBuf,
    /// Reference names in the layout's index, the principal one first.
    pub names: Vec<String>,
    /// Digest of the manifest: the same for the same packages, whenever and wherever built.
    pub manifest: Digest,
}

/// Builds an image. `talk` gets a line for each thing that is begun.
///
/// Needs root, mmdebstrap for Debian images, and about 1 GB of memory for a tmpfs, or `keep`.
///
/// # Errors
/// Not root; another build writes to the same layout; a script that fails, with the end of its log.
/// The layout then has no new image in its index.
pub fn build(options: &BuildOptions, talk: &mut dyn FnMut(&str)) -> Result<Built> {
    fs::create_dir_all(&options.output)
        .with_context(|| format!("make directory {}", options.output.display()))?;
    let output = options.output.canonicalize()?;
    let _lock = lock(&output)?;
    let workshop = Workshop::create(&output, options)?;
    let (lines, received) = channel();
    thread::scope(|scope| {
        let builder = scope.spawn(|| workshop.build(lines));
        for line in received {
            talk(&line);
        }
        builder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    file.try_lock().with_context(|| format!("{}: another build writes to this layout", dir.display()))?;
    Ok(file)
}

/// The directory in which an image is built, and what is to be built in it.
///
/// `layer1`, `layer2`, … are what becomes the layers, `root` is where the scripts see them stacked.
struct Workshop<'a> {
    dir: PathBuf,
    output: &'a Path,
    options: &'a BuildOptions,
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        if !self.options.keep {
            // On the host this is an empty directory: what was in it went with the mount namespace.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

impl<'a> Workshop<'a> {
    fn create(output: &'a Path, options: &'a BuildOptions) -> Result<Self> {
        let dir = output.join(".work");
        match fs::create_dir(&dir) {
            // An interrupted build leaves it empty. One that was told to keep its work leaves that.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                ensure!(dir.read_dir()?.next().is_none(), "{} is in the way: remove it", dir.display());
            }
            made => made.with_context(|| format!("make directory {}", dir.display()))?,
        }
        Ok(Workshop { dir, output, options })
    }

    fn build(&self, lines: Sender<String>) -> Result<Built> {
        self.isolate()?;
        let scripts = self.options.recipe.scripts()?;
        let layout = Layout::create(self.output)?;
        let (layers, history) = thread::scope(|scope| {
            let mut packing = Vec::new();
            let mut history = Vec::new();
            for (index, script) in scripts.layers.iter().enumerate() {
                let number = index + 1;
                fs::create_dir(self.layer(number))?;
                self.run(script, number, &lines)?;
                let date = self.take_date(script)?;
                history.push(self.history(script, date)?);
                // The layer is a read-only lower from here on: it is packed while the next is made.
                let lowers = (1..number).map(|below| self.layer(below)).collect::<Vec<_>>();
                let (layout, tree, lines) = (&layout, self.layer(number), lines.clone());
                packing.push(scope.spawn(move || {
                    let _ = lines.send(format!("packing layer {number}"));
                    layout.add_layer(&tree, &lowers, date, self.options.compression)
                }));
            }
            self.run(&scripts.image, scripts.layers.len() + 1, &lines)?;
            let layers = packing
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()?;
            anyhow::Ok((layers, history))
        })?;
        self.assemble(&layout, layers, history)
    }

    /// Gives this thread a mount namespace of its own, with a tmpfs to work in.
    fn isolate(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)
            .context("unshare(CLONE_NEWNS): a new mount namespace needs root (CAP_SYS_ADMIN)")?;
        let none = None::<&str>;
        // The copied mounts are still peers of the host's: what is mounted here would appear there.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make / private")?;
        if !self.options.keep {
            mount(Some("pgbox-build"), &self.dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
                .with_context(|| format!("mount a tmpfs on {}", self.dir.display()))?;
        }
        fs::create_dir(self.dir.join("root")).context("make the mount point for the root")
    }

    fn layer(&self, number: usize) -> PathBuf {
        self.dir.join(format!("layer{number}"))
    }

    /// Runs one script over the layers below `number`, with its changes going to layer `number`.
    fn run(&self, script: &Script, number: usize, lines: &Sender<String>) -> Result<()> {
        let log = self.dir.join("log");
        let mut child = self
            .command(&format!("{}\n{}", stack(number), script.text), &script.name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("create {}", log.display()))?)
            .spawn()
            .context("start setpriv (Debian package util-linux)")?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        for line in stdout.lines().map_while(Result::ok) {
            // The receiver is gone only when the whole build is.
            let _ = lines.send(line);
        }
        let status = child.wait().with_context(|| format!("wait for script {}", script.name))?;
        ensure!(status.success(), "{} failed ({status}):\n{}", self.title(script), tail(&log));
        Ok(())
    }

    /// A shell in namespaces of its own, which dies with this thread and with it everything it started.
    fn command(&self, text: &str, name: &str) -> Command {
        // setpriv: KILL for unshare when this thread dies; unshare: KILL for the whole PID namespace
        // when unshare dies. Ctrl-C alone would not do: signals without a handler do not reach pid 1.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(["unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-eu", "-c", text, name])
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| PASSED_ON.iter().any(|passed| name == passed)))
            .envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("HOME", "/root"),
                ("LC_ALL", "C"),
                ("TZ", "UTC"),
            ])
            .env("SUITE", &self.options.suite)
            .env("WORK", &self.dir)
            .env("ROOT", self.dir.join("root"))
            // What a killed mmdebstrap leaves in its temporary directory goes with the tmpfs.
            .env("TMPDIR", &self.dir)
            .current_dir(&self.dir);
        command
    }

    fn title(&self, script: &Script) -> String {
        format!("recipe {}, script {}", self.options.recipe.name(), script.name)
    }

    /// The layer's SOURCE_DATE_EPOCH, which its script left in `date`.
    fn take_date(&self, script: &Script) -> Result<SystemTime> {
        let file = self.dir.join("date");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("{} left no $WORK/date", self.title(script)))?;
        fs::remove_file(&file)?;
        let seconds = text.trim().parse().with_context(|| {
            format!("{} left {:?} in $WORK/date, not seconds since 1970", self.title(script), text.trim())
        })?;
        Ok(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn history(&self, script: &Script, date: SystemTime) -> Result<History> {
        let (recipe, suite) = (self.options.recipe.name(), &self.options.suite);
        Ok(HistoryBuilder::default()
            .created(rfc3339(date))
            .created_by(format!("pgbox image build: {recipe}/{}, suite {suite}", script.name))
            .build()?)
    }

    /// Writes configuration, manifest and index.
    fn assemble(
        &self,
        layout: &Layout,
        layers: Vec<(Descriptor, Packed)>,
        history: Vec<History>,
    ) -> Result<Built> {
        let json = fs::read(self.dir.join("image.json"))
            .with_context(|| format!("recipe {} left no $WORK/image.json", self.options.recipe.name()))?;
        let image: ImageJson = serde_json::from_slice(&json)
            .with_context(|| format!("recipe {}: image.json", self.options.recipe.name()))?;
        ensure!(!image.names.is_empty(), "recipe {}: image.json has no name", self.options.recipe.name());
        let config = configuration(image.config, &layers, history)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(layout.add_json(MediaType::ImageConfig, &config)?)
            .layers(layers.into_iter().map(|(descriptor, _)| descriptor).collect::<Vec<_>>())
            .build()?;
        let mut descriptor = layout.add_json(MediaType::ImageManifest, &manifest)?;
        let platform = PlatformBuilder::default().architecture(Arch::default()).os(Os::Linux).build()?;
        descriptor.set_platform(Some(platform));
        layout.tag(&descriptor, &image.names)?;
        Ok(Built {
            layout: self.output.to_owned(),
            names: image.names,
            manifest: descriptor.digest().clone(),
        })
    }
}

/// How the host reaches its network; everything else in the environment could change the image.
const PASSED_ON: [&str; 3] = ["http_proxy", "https_proxy", "no_proxy"];

/// Shell: mounts the layers below `number` and layer `number` on `root`. Run inside the script's own
/// mount namespace, which is the umount as well.
fn stack(number: usize) -> String {
    if number == 1 {
        return "umask 022; mount --bind layer1 root".to_owned();
    }
    let lowers = (1..number).rev().map(|below| format!("layer{below}")).collect::<Vec<_>>().join(":");
    // All four features off: each lets overlayfs leave a file's content or name in a lower layer and say
    // so in an xattr, or mark every new directory opaque. A layer has to stand on its own.
    format!(
        "umask 022; mkdir -p layer{number} overlay{number}; mount -t overlay overlay -o \
         lowerdir={lowers},upperdir=layer{number},workdir=overlay{number},\
         redirect_dir=off,metacopy=off,index=off,xino=off root"
    )
}

fn configuration(
    config: oci_spec::image::Config,
    layers: &[(Descriptor, Packed)],
    history: Vec<History>,
) -> Result<ImageConfiguration> {
    let diff_ids = layers.iter().map(|(_, packed)| packed.diff_id.to_string()).collect::<Vec<_>>();
    let created = history.last().and_then(|last| last.created().clone());
    Ok(ImageConfigurationBuilder::default()
        .created(created.unwrap_or_else(|| rfc3339(UNIX_EPOCH)))
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(config)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
        .history(history)
        .build()?)
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    crate::sys::tail::lines(log, 20).iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// `1970-01-01T00:00:00Z`; whole seconds, from 1970 on.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years from March to February, so that the leap day is the last: 1970-03-01 is day 59, and
    // 400 years have 146,097 days. 719,468 days lie between 0000-03-01 and 1970-01-01.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn layers_stack_with_the_newest_lower_first() {
        assert_eq!(stack(1), "umask 022; mount --bind layer1 root");
        assert!(stack(3).contains("lowerdir=layer2:layer1,upperdir=layer3,"), "{}", stack(3));
    }

    #[test]
    fn own_recipes_are_complete() {
        for recipe in [Recipe::Postgres, Recipe::Tiny] {
            let scripts = recipe.scripts().unwrap();
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(recipe.name());
            assert_eq!(scripts, Recipe::Directory(dir).scripts().unwrap(), "compiled in and on disk differ");
        }
    }
}
