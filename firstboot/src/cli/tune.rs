//! `firstboot tune`: every setting this node runs with, and with `--explain` why.

use super::{Outcome, check};
use crate::facts::Facts;
use crate::layout::Layout;
use crate::tune::{self, Setting, hugepages::Question};

/// What to say.
#[derive(Debug, clap::Args)]
pub(super) struct Tune {
    /// Say for each setting how it was computed and where the formula comes from
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    seed: check::Args,
}

pub(super) fn run(layout: &Layout, args: &Tune, json: bool) -> Outcome {
    let desired = check::desired(layout, &args.seed)?;
    let facts = Facts::gather(layout);
    let mut settings = tune::postgresql(&desired, &facts);
    settings.extend(tune::kernel::settings(layout));
    if desired.profile.runs("patroni") {
        settings.push(huge_pages(layout, Question::new(&desired, &facts).map_err(super::problems)?)?);
    }
    if json {
        println!(
            "{}",
            serde_json::json!({"schema": 1, "memory_mib": facts.memory_mib, "cpus": facts.cpus, "settings": settings})
        );
        return Ok(());
    }
    println!("{} MiB of memory, {} processors", facts.memory_mib, facts.cpus);
    for setting in settings {
        print!("{}", text(&setting, args.explain));
    }
    Ok(())
}

fn huge_pages(layout: &Layout, question: Option<Question>) -> Result<Setting, Vec<crate::problem::Problem>> {
    let (value, note) = match &question {
        None => ("0".to_owned(), None),
        // Asking PostgreSQL takes a moment and its user: only where it runs.
        Some(question) if layout.is_live() => match super::run::runtime()?.block_on(question.pages(layout)) {
            Ok(pages) => {
                let has = tune::hugepages::reserved(layout);
                let missing = (has < pages).then(|| {
                    format!("the kernel has {has}: PostgreSQL uses ordinary pages (in a container the host decides)")
                });
                (pages.to_string(), missing)
            }
            Err(error) => ("unknown".to_owned(), Some(format!("{error:#}"))),
        },
        Some(_) => ("unknown".to_owned(), Some("asked of PostgreSQL on the node".to_owned())),
    };
    Ok(Setting {
        scope: "kernel",
        name: "vm.nr_hugepages".to_owned(),
        value,
        formula: "what `postgres -C shared_memory_size_in_huge_pages` says, and one in a hundred more, from 1 GiB of \
                  shared_buffers on"
            .to_owned(),
        source: "PostgreSQL documentation, Linux Huge Pages".to_owned(),
        by: "formula",
        note,
    })
}

fn text(setting: &Setting, explain: bool) -> String {
    let Setting { scope, name, value, formula, source, by, note } = setting;
    let mut text = format!("{scope:<10} {name} = {value}\n");
    if explain {
        let source = if source.is_empty() { String::new() } else { format!(" [{source}]") };
        text.push_str(&format!("             {by}: {formula}{source}\n"));
    }
    if let Some(note) = note {
        text.push_str(&format!("             not in effect: {note}\n"));
    }
    text
}
