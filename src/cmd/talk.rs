//! What commands say on standard error while they work: one line that changes on a terminal, nothing
//! elsewhere but notes and warnings.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::{
    engine::launch::Talk, hint, postgres::report::Phase, spec::quantity::human_bytes, step::HostStep,
};

/// Progress of a node that comes up.
pub struct Progress {
    /// On a terminal only: to make one that shows nothing is work, too.
    bar: Option<ProgressBar>,
    options: String,
}

impl Progress {
    pub fn new(context: &Context) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_msg}");
            ProgressBar::new_spinner().with_style(style.unwrap_or(ProgressStyle::default_spinner()))
        });
        Self { bar, options: context.options.clone() }
    }

    /// A line that comes soon after others is not drawn by itself, and what it tells of may last.
    fn draw(&self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text());
            bar.force_draw();
        }
    }
}

impl Talk for Progress {
    fn step(&mut self, number: usize, total: usize, step: &HostStep) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{number}/{total} {}", step.lesson().title));
        }
    }

    fn phase(&mut self, phase: Phase) {
        self.draw(|| phase.word().to_owned());
    }

    fn copied(&mut self, bytes: u64, total: u64) {
        let percent = (bytes * 100).checked_div(total).unwrap_or(0).min(100);
        let width = 30;
        let full = width * percent as usize / 100;
        self.draw(|| {
            let (bytes, total) = (human_bytes(bytes), human_bytes(total));
            let bar = format!("{}{}", "#".repeat(full), ".".repeat(width - full));
            format!("base backup {bar} {percent} %  {bytes} of {total}")
        });
    }

    fn note(&mut self, text: &str) {
        let text = hint::with_options(text, &self.options);
        match &self.bar {
            Some(bar) => bar.suspend(|| errln!("note: {text}")),
            None => errln!("note: {text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// Progress of an import: one bar over the bytes of all layers.
pub struct Layers {
    bar: ProgressBar,
}

impl Layers {
    pub fn new() -> Self {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
        let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(0).with_style(style) }
    }
}

impl crate::image::Progress for Layers {
    fn begin(&self, layers: usize, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_message(format!("unpacking {layers} layers"));
    }

    fn advance(&self, _layer: usize, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
