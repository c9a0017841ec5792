//! Starts the load program: reads the options, runs the scenarios and writes the results to the
//! screen and to files. The library does the work.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bench::{
    clock::Clock,
    comparison::comparison,
    floor,
    options::{Options, Part, Scenario},
    process::{Binaries, about},
    rig::Bench,
    scenario::{
        context::{Context, QUIET_CORES},
        growth, s1, s2, s3, s4, s5, s6, s7, s8, s9, split,
    },
    secure::Identity,
};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

fn main() -> Result<()> {
    let options = Options::parse();
    match options.part {
        Some(Part::Relay { upstream }) => floor::relay(upstream),
        Some(Part::Fanout { clients, frame_events, epoch_ns }) => {
            raise_descriptors()?;
            floor::fanout(clients, frame_events, Clock::since(epoch_ns))
        }
        None => measure(&options),
    }
}

fn measure(options: &Options) -> Result<()> {
    raise_descriptors()?;
    let bench = Bench {
        binaries: Binaries::build(options.nats_server.clone())?,
        clock: Clock::start(),
        identity: Arc::new(Identity::new()?),
        peer: options.peer.clone(),
    };
    let runs = if options.quick { 1 } else { options.runs.max(1) };
    let patience = Duration::from_secs(if options.quick { 0 } else { options.patience });
    let mut context = Context::new(bench, options.quick, runs, patience);
    let mut about = about()?;
    eprintln!("{about}");
    for scenario in &options.scenario {
        match scenario {
            Scenario::Split => split::run(&mut context),
            Scenario::S1 => s1::run(&mut context),
            Scenario::S2 => s2::run(&mut context),
            Scenario::S3 => s3::run(&mut context),
            Scenario::S4 => s4::run(&mut context),
            Scenario::S5 => s5::run(&mut context),
            Scenario::S6 => s6::run(&mut context),
            Scenario::S7 => s7::run(&mut context),
            Scenario::S8 => s8::run(&mut context),
            Scenario::S9 => s9::run(&mut context),
            Scenario::Growth => growth::run(&mut context),
        }
        .with_context(|| format!("scenario {scenario:?}"))?;
    }
    let (median, most) = context.disturbance();
    let mut table = context.sheet.table(median > QUIET_CORES);
    if median.is_finite() {
        table += &format!(
            "\nOther programs kept {median:.2} cores busy meanwhile, {most:.2} at worst.\n"
        );
    }
    if let Some(comparison) = comparison(&context.sheet, median > QUIET_CORES) {
        table += &format!("\n{comparison}");
    }
    println!("{table}");
    about["cores_busy_with_other_programs"] = json!({ "median": median, "most": most });
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bench"));
    let out = options.out.clone().or((!options.quick).then_some(usual));
    let Some(out) = out else { return Ok(()) };
    fs::create_dir_all(&out)?;
    fs::write(out.join("table.md"), &table)?;
    let json = serde_json::to_string_pretty(&context.sheet.json(&about))?;
    fs::write(out.join("results.json"), json + "\n")?;
    for plot in &context.sheet.plots {
        let svg = plot.svg().map_err(anyhow::Error::from_boxed)?;
        fs::write(out.join(&*plot.file), svg)?;
    }
    println!("written to {}", out.display());
    Ok(())
}

/// Lets this process and its children open as many sockets as the system allows.
fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the limit of open files")
}
