//! Commands about images and volumes.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::spec::Name;

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build an image from Debian packages
    Build(Build),
    /// Import an OCI layout directory, an OCI archive or a `docker save` archive
    Import {
        /// The directory, or the archive; FILE:NAME for one image of several
        source: PathBuf,
        /// Name it, as in postgres:15
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// List images
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an image's configuration and layers
    Inspect {
        /// Name or digest of the image
        image: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images
    Rm {
        /// Names or digests of the images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Mount an image's file system read-only, to look around in it
    Mount {
        /// Name or digest of the image
        image: String,
        /// The directory to mount it at
        dir: PathBuf,
    },
    /// Unmount it again
    Umount {
        /// The directory that it is mounted at
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Build {
    /// A recipe: postgres, tiny, or a directory
    #[arg(default_value = "postgres")]
    pub recipe: String,
    /// Debian suite; other suites have other versions of Postgres
    #[arg(long, value_name = "SUITE", default_value = "bookworm")]
    pub suite: String,
    /// Name the image
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    /// Write an OCI layout here instead of importing the image
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// How layers are packed
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    pub compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

#[derive(Debug, Subcommand)]
pub enum Volumes {
    /// List volumes with their size, the version of their data, and the nodes that have them
    Ls(VolumeLs),
    /// Remove volumes that no node has, with all data
    Rm {
        /// Their names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<Name>,
        /// Only print what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct VolumeLs {
    /// Volumes of all labs
    #[arg(short, long)]
    pub all_labs: bool,
    /// Only names
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
