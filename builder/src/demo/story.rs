//! The demo told to a person.

use std::path::Path;

use super::Outcome;
use super::scenario::Told;
use crate::tool::shell_quoted;

/// What happened and what it cost.
pub(super) fn of(outcome: &Outcome, told: &Told) -> String {
    format!(
        "\nWhat happened, in seconds since the first node's start:\n{}\n\
         ready        {:.1} s from power-on to a leader and {} streaming replicas\n\
         failover     {:.1} s without writes through the virtual IP (preset `fast`, for one LAN; the default `norm` takes some 10 s longer)\n\
         writes       {} acknowledged, {} lost\n\
         durability   {}\n\
         backup       {} (full, made by itself on bkp-1)\n",
        told.timeline.render(),
        outcome.ready_seconds,
        outcome.members - 1,
        outcome.failover_seconds,
        outcome.acked_writes,
        outcome.lost_writes,
        outcome.durability,
        outcome.backup,
    )
}

/// How to connect to a kept lab, look around and end it.
pub(super) fn look_around(dir: &Path, told: &Told) -> String {
    let program = std::env::current_exe().map_or_else(|_| "pgkiln".to_owned(), |path| path.display().to_string());
    let pgkiln = shell_quoted(&program);
    let (lab, leader) = (&told.lab_name, &told.leader);
    let cluster = shell_quoted(&dir.join("cluster").display().to_string());
    format!(
        "The cluster is up and stays up. Connect:\n  \
         export PGPASSWORD=$({pgkiln} cluster secret {cluster} orders_app)\n  \
         {}\nLook around:\n  \
         {pgkiln} lab status {lab}\n  \
         {pgkiln} lab run {lab} {leader} -- patronictl list\n  \
         {pgkiln} lab run {lab} {leader} -- firstboot status\n  \
         {pgkiln} lab kill {lab} {leader}\nEnd it:\n  \
         {pgkiln} lab down {lab} && rm -r {}",
        told.connect,
        shell_quoted(&dir.display().to_string()),
    )
}

/// The one thing that must not happen.
pub(super) fn lost(told: &Told) -> String {
    format!("{} of {} acknowledged rows were lost when {} died", told.lost, told.acknowledged, told.first_leader)
}
