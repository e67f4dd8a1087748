//! Which machines an image is for: their architecture, and the kernel of the variant.

use super::Image;
use crate::problem::Problem;
use crate::strict::suggestion;

/// This machine's architecture as Debian calls it.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Image {
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

    /// What outputs are called: the image's name, and the variant if it is not the recipe's own.
    pub fn full_name(&self) -> String {
        match &self.overrides.variant {
            Some(variant) => format!("{}-{variant}", self.name),
            None => self.name.clone(),
        }
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
        let text = format!(
            "schema = 1\nname = 'x'\ndistribution = 'debian'\nsuite = 'x'\narchitecture = 'arm64'\nvariant = 'cloud'\n\
             [kernel]\n{kernel}\n[archives.debian]\nurl = 'host'\nsuites = ['x']\ncomponents = ['main']\n\
             fingerprints = ['04B54C3CDCA79751B16BC6B5225629DF75B188BD']\n"
        );
        let mut image = Image::parse(&text, Path::new("x/image.toml")).unwrap();
        image.overrides = Overrides { variant: variant.map(str::to_owned), ..Overrides::default() };
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
    fn another_architecture_is_refused_before_anything_is_done() {
        let refused = image("package = 'linux'", None).unwrap().check_architecture();
        assert_eq!(refused.is_err(), host_architecture() != "arm64");
    }
}
