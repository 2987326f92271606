//! `pgbox image`: the store of images.

use std::{io::IsTerminal, path::Path};

use anyhow::{Context as _, Error, Result};
use nix::errno::Errno;
use serde_json::json;

use super::{Context, need_root};
use crate::{
    cli::{self, Compression},
    facts,
    hint::{self, advise},
    image::{
        self, Digest, Image, InUse, Store,
        build::{self, BuildOptions},
    },
    show::table,
    spec::{Name, quantity::human_bytes},
};

pub fn run(context: &Context, command: cli::Image) -> Result<i32> {
    // Opening the store makes it; somebody who only looks has no use for that.
    if let (cli::Image::Ls { json }, false) = (&command, context.root.path().exists()) {
        return list(&[], *json).map(|()| 0);
    }
    let store = Store::open(context.root.path())?;
    match command {
        cli::Image::Build(args) => build(context, &store, &args)?,
        cli::Image::Import { source, name } => {
            import(&store, &source, name.as_deref())?;
        }
        cli::Image::Ls { json } => list(&store.list()?, json)?,
        cli::Image::Inspect { image, json } => inspect(&store.resolve(&image)?, json)?,
        cli::Image::Rm { images } => remove(context, &store, &images)?,
        cli::Image::Mount { image, dir } => {
            need_root("pgbox image mount")?;
            image::mount(&store.resolve(&image)?, &dir)?;
        }
        cli::Image::Umount { dir } => {
            need_root("pgbox image umount")?;
            image::umount(&dir).map_err(|error| not_unmounted(&dir, error))?;
        }
    }
    Ok(0)
}

/// Imports an image and prints what it is called now.
fn import(store: &Store, source: &Path, name: Option<&str>) -> Result<()> {
    let image = match std::io::stderr().is_terminal() {
        true => store.import(source, name, &super::talk::Layers::new()),
        false => store.import(source, name, &image::Silent),
    }?;
    match name {
        Some(name) => outln!("{name}"),
        None => image.names.iter().for_each(|name| outln!("{name}")),
    }
    Ok(())
}

fn build(context: &Context, store: &Store, args: &cli::Build) -> Result<()> {
    need_root("pgbox image build")?;
    let output = match &args.output {
        Some(dir) => dir.clone(),
        None => context.root.path().join("build"),
    };
    let options = BuildOptions {
        recipe: recipe(&args.recipe),
        suite: args.suite.clone(),
        output: output.clone(),
        compression: match args.compression {
            Compression::Gzip => build::Compression::Gzip,
            Compression::Zstd => build::Compression::Zstd,
            Compression::None => build::Compression::None,
        },
        keep: false,
    };
    let built = build::build(&options, &mut |line| errln!("{line}"))?;
    if args.output.is_some() {
        outln!("{}", built.manifest);
        return Ok(());
    }
    import(store, &built.layout, args.name.as_deref())?;
    std::fs::remove_dir_all(&output).with_context(|| format!("remove {}", output.display()))
}

/// A recipe of pgbox by its name, or a directory by anything else.
fn recipe(word: &str) -> build::Recipe {
    match word {
        "postgres" => build::Recipe::Postgres,
        "tiny" => build::Recipe::Tiny,
        dir => build::Recipe::Directory(dir.into()),
    }
}

fn list(images: &[Image], as_json: bool) -> Result<()> {
    if as_json {
        let all: Vec<_> = images.iter().map(describe).collect();
        outln!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let cells = |image: &Image| {
        let digest: String = image.manifest.to_string().chars().take(19).collect();
        vec![image.names.join(", "), digest, image.layers.len().to_string(), human_bytes(image.size())]
    };
    out!(
        "{}",
        table::render(&["NAMES", "DIGEST", "LAYERS", "SIZE"], &images.iter().map(cells).collect::<Vec<_>>())
    );
    Ok(())
}

fn describe(image: &Image) -> serde_json::Value {
    let layer = |layer: &image::Layer| json!({ "diff_id": layer.diff_id.0.to_string(), "directory": layer.dir, "size": layer.size });
    json!({
        "names": image.names,
        "digest": image.manifest.to_string(),
        "size": image.size(),
        "created": image.config.created,
        "architecture": image.config.architecture,
        "env": image.config.env,
        "entrypoint": image.config.entrypoint,
        "cmd": image.config.cmd,
        "user": image.config.user,
        "volumes": image.config.volumes,
        "exposed_ports": image.config.exposed_ports,
        "stop_signal": image.config.stop_signal,
        "labels": image.config.labels,
        "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

fn inspect(image: &Image, as_json: bool) -> Result<()> {
    let value = describe(image);
    match as_json {
        true => outln!("{}", serde_json::to_string_pretty(&value)?),
        false => super::inspect::print_tree(&value, 0),
    }
    Ok(())
}

/// What to do about a mount that stays.
fn not_unmounted(dir: &Path, error: Error) -> Error {
    let dir = dir.display();
    match hint::errno_of(&error) {
        Some(Errno::EINVAL) => advise(
            format!("nothing is mounted at {dir}"),
            "`findmnt -t overlay` shows where images are mounted; a symbolic link is not followed",
        ),
        Some(Errno::EBUSY) => {
            advise(format!("{dir} is in use"), format!("somebody works in it: `fuser -vm {dir}` shows who"))
        }
        Some(Errno::ENOENT) => {
            advise(format!("there is no {dir}"), "`findmnt -t overlay` shows where images are mounted")
        }
        _ => error,
    }
}

fn remove(context: &Context, store: &Store, images: &[String]) -> Result<()> {
    for image in images {
        // Held until the layers are gone.
        let (mut shared, mut shown) = (None, Vec::new());
        let removed = store.remove(image, || {
            shared = Some(context.root.lock_shared()?);
            let mut digests: Vec<Digest> = used(context)?.into_iter().map(|(digest, _)| digest).collect();
            // One that can't be read is damaged, and may go.
            if let Ok(found) = store.resolve(image) {
                shown = image::mount_points(&found)?;
                digests.extend(shown.first().map(|_| found.manifest));
            }
            Ok(digests)
        });
        if let Err(error) = removed {
            return Err(match shown.first() {
                Some(point) => mounted(image, point),
                None => named(error, &used(context)?),
            });
        }
        outln!("{image}");
    }
    Ok(())
}

fn mounted(image: &str, point: &Path) -> Error {
    let point = point.display();
    advise(
        format!("image {image} is mounted at {point}, and would be gone from there"),
        format!("look at it no more first: pgbox image umount {point}"),
    )
}

/// Says which nodes an image is in use by.
fn named(error: Error, used: &[(Digest, Name)]) -> Error {
    let Some(InUse { reference, manifest }) = error.downcast_ref() else { return error };
    let nodes = used.iter().filter(|(digest, _)| digest == manifest).map(|(_, name)| name.as_str());
    let nodes: Vec<&str> = nodes.collect();
    advise(
        format!("image {reference} is in use by {}", nodes.join(", ")),
        format!("remove what was made from it first: pgbox rm {}", nodes.join(" ")),
    )
}

/// Images that a node was made from, in any lab: it needs them to start again.
fn used(context: &Context) -> Result<Vec<(Digest, Name)>> {
    let mut used = Vec::new();
    for lab in context.root.labs()? {
        for (name, state) in facts::nodes(&context.root, &lab)? {
            used.push((state.image.parse()?, name));
        }
    }
    Ok(used)
}
