//! The kernel's settings: the image's own `sysctl.d` file, applied at every boot by systemd-sysctl. Its comments are the
//! reasons; what the kernel really has is read beside it.

use fs_err as fs;

use super::Setting;
use crate::layout::Layout;

const FILE: &str = "/usr/lib/sysctl.d/60-pgkiln.conf";

/// Every setting of the image's file, with a note where the kernel has another value.
pub fn settings(layout: &Layout) -> Vec<Setting> {
    let text = fs::read_to_string(layout.at(FILE)).unwrap_or_default();
    let mut settings = parse(&text);
    for setting in settings.iter_mut().filter(|_| layout.is_live()) {
        let path = format!("/proc/sys/{}", setting.name.replace('.', "/"));
        setting.note = match fs::read_to_string(&path).map(|now| now.split_whitespace().collect::<Vec<_>>().join(" ")) {
            Ok(now) if now == setting.value => None,
            Ok(now) => Some(format!("the kernel has {now}: in a container the host decides, set it there")),
            Err(_) => Some("this kernel has no such setting here".to_owned()),
        };
    }
    settings
}

fn parse(text: &str) -> Vec<Setting> {
    let mut why = String::new();
    let mut settings = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            why = comment.trim().to_owned();
        } else if let Some((name, value)) = line.split_once('=') {
            settings.push(Setting {
                scope: "kernel",
                name: name.trim().to_owned(),
                value: value.trim().to_owned(),
                formula: why.clone(),
                source: FILE.to_owned(),
                by: "agent",
                note: None,
            });
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_image_has_a_reason() {
        let settings = parse(include_str!("../../../images/common/tree/usr/lib/sysctl.d/60-pgkiln.conf"));
        assert!(settings.len() > 8 && settings.iter().all(|setting| !setting.formula.is_empty()), "{settings:?}");
        let keepalive = settings.iter().find(|setting| setting.name == "net.ipv4.tcp_keepalive_intvl").unwrap();
        assert_eq!(
            (keepalive.value.as_str(), keepalive.formula.as_str()),
            ("10", "Dead peers are noticed within a minute.")
        );
    }
}
