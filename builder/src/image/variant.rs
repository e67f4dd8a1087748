//! Which machines an image is for: their architecture, and the kernel of the variant.

use std::collections::BTreeMap;

use super::{Image, Located};
use crate::problem::Problem;
use crate::strict::suggestion;

/// Packages of kernels by variant.
pub type Kernels = BTreeMap<String, Located<String>>;

/// This machine's architecture as Debian calls it.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Image {
    /// Takes the architecture that the command line names, if it does.
    pub(super) fn choose_architecture(&mut self) -> Result<(), Problem> {
        let Some(architecture) = self.overrides.architecture.clone() else { return Ok(()) };
        if self.architecture == architecture {
            self.overrides.architecture = None;
            return Ok(());
        }
        let Some(kernels) = self.other_architectures.get(&architecture) else {
            let own = [self.architecture.as_str()];
            let known: Vec<&str> = own.into_iter().chain(self.other_architectures.keys().map(String::as_str)).collect();
            let what = format!("the recipe has no kernel for the architecture `{architecture}`");
            let remedy =
                format!("it has {}; name the package in a section [kernel.{architecture}]", known.join(" and "));
            return Err(Problem::new(what, self.file.display().to_string(), remedy));
        };
        self.kernel = self.variant.as_ref().and_then(|variant| kernels.get(variant)).cloned();
        self.kernels.clone_from(kernels);
        self.architecture = architecture;
        Ok(())
    }

    /// What the command line chose instead of the recipe's own: the variant, the architecture.
    pub(super) fn chosen(&self) -> impl Iterator<Item = &str> {
        [&self.overrides.variant, &self.overrides.architecture].into_iter().flatten().map(String::as_str)
    }

    /// Takes the variant that the command line names, if it does.
    pub(super) fn choose_variant(&mut self) -> Result<(), Problem> {
        let Some(variant) = self.overrides.variant.clone() else { return Ok(()) };
        if self.variant.as_ref() == Some(&variant) {
            self.overrides.variant = None;
            return Ok(());
        }
        let Some(kernel) = self.kernels.get(&variant) else {
            let known: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
            let remedy = match known[..] {
                [] => format!("write [kernel] with {variant} = \"…\" and the recipe's own variant beside it"),
                _ => suggestion(&variant, &known, "variant"),
            };
            let what = format!("the recipe has no kernel for the variant `{variant}`");
            return Err(Problem::new(what, self.file.display().to_string(), remedy));
        };
        self.kernel = Some(kernel.clone());
        self.variant = Some(variant);
        Ok(())
    }

    /// What outputs are called: the image's name, and variant and architecture where they are not the recipe's own.
    pub fn full_name(&self) -> String {
        [self.name.as_str()].into_iter().chain(self.chosen()).collect::<Vec<_>>().join("-")
    }

    /// Refuses to bake for processors that this machine does not have.
    pub fn check_architecture(&self) -> Result<(), Problem> {
        let host = host_architecture();
        if self.architecture == host {
            return Ok(());
        }
        Err(Problem::new(
            format!("this image is for {}, this machine is {host}", self.architecture),
            self.file.display().to_string(),
            format!(
                "bake it on a machine with {0} processors: packages run their maintainer scripts, and emulating {0} would be \
                 slow and another source of differences. `pgkiln lock` and `pgkiln fetch --to DIR` work here; carry both there",
                self.architecture
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::image::Overrides;

    fn image(kernel: &str, variant: Option<&str>) -> Result<Image, Problem> {
        chosen(kernel, variant, None)
    }

    fn chosen(kernel: &str, variant: Option<&str>, architecture: Option<&str>) -> Result<Image, Problem> {
        let text = format!(
            "schema = 1\nname = 'x'\ndistribution = 'debian'\nsuite = 'x'\narchitecture = 'arm64'\nvariant = 'cloud'\n\
             [kernel]\n{kernel}\n[archives.debian]\nurl = 'host'\nsuites = ['x']\ncomponents = ['main']\n\
             fingerprints = ['04B54C3CDCA79751B16BC6B5225629DF75B188BD']\n"
        );
        let mut image = Image::parse(&text, Path::new("x/image.toml")).unwrap();
        let [variant, architecture] = [variant, architecture].map(|name| name.map(str::to_owned));
        image.overrides = Overrides { variant, architecture, ..Overrides::default() };
        image.choose_architecture()?;
        image.choose_variant()?;
        Ok(image)
    }

    #[test]
    fn a_variant_has_its_kernel_its_lock_and_its_name() {
        let both = "cloud = 'linux-cloud'\nmetal = 'linux-metal'";
        let (cloud, metal) = (image(both, None).unwrap(), image(both, Some("metal")).unwrap());
        let told = |image: &Image| (image.kernel.clone().unwrap().value, image.lock_file(), image.full_name());
        assert_eq!(told(&cloud), ("linux-cloud".into(), "x/image.lock".into(), "x".into()));
        assert_eq!(told(&metal), ("linux-metal".into(), "x/image.metal.lock".into(), "x-metal".into()));
        assert_ne!(cloud.resolution_digest(), metal.resolution_digest());
        assert_eq!(told(&image(both, Some("cloud")).unwrap()), told(&cloud), "the recipe's own");
        let told = image("package = 'linux-cloud'", Some("metal")).unwrap_err().to_string();
        assert!(told.contains("no kernel for the variant `metal`"), "{told}");
        let told = image(both, Some("mteal")).unwrap_err().to_string();
        assert!(told.contains("did you mean `metal`?"), "{told}");
    }

    #[test]
    fn another_architecture_has_its_kernels_its_lock_and_its_name() {
        let kernels = "cloud = 'c-arm64'\nmetal = 'm-arm64'\n[kernel.amd64]\ncloud = 'c-amd64'\nmetal = 'm-amd64'";
        let told = |variant, architecture| {
            let image = chosen(kernels, variant, architecture).unwrap();
            (image.architecture.clone(), image.kernel.clone().unwrap().value, image.lock_file(), image.full_name())
        };
        let own = ("arm64".into(), "c-arm64".into(), "x/image.lock".into(), "x".into());
        assert_eq!(told(None, None), own);
        assert_eq!(told(None, Some("arm64")), own, "the recipe's own");
        let other = ("amd64".into(), "c-amd64".into(), "x/image.amd64.lock".into(), "x-amd64".into());
        assert_eq!(told(None, Some("amd64")), other);
        let both = ("amd64".into(), "m-amd64".into(), "x/image.metal.amd64.lock".into(), "x-metal-amd64".into());
        assert_eq!(told(Some("metal"), Some("amd64")), both);
        let told = chosen("cloud = 'c-arm64'", None, Some("amd64")).unwrap_err().to_string();
        assert!(told.contains("no kernel for the architecture `amd64`") && told.contains("[kernel.amd64]"), "{told}");
        assert_eq!(chosen(kernels, None, Some("amd64")).unwrap().arguments(), "x --arch amd64");
    }

    #[test]
    fn another_architecture_is_refused_before_anything_is_done() {
        let refused = image("package = 'linux'", None).unwrap().check_architecture();
        assert_eq!(refused.is_err(), host_architecture() != "arm64");
    }
}
