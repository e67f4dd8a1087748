//! The half of a certificate verifier that is the same whomever it trusts: that the peer has the key of the certificate it shows.

/// The methods of `ServerCertVerifier` and `ClientCertVerifier` that check signatures, with the algorithms of the provider in
/// the field `$provider`. rustls asks each verifier for them; leaving them to one place keeps them from differing.
#[macro_export]
macro_rules! checks_signatures {
    ($provider:ident) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &::rustls::pki_types::CertificateDer<'_>,
            dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            let algorithms = &self.$provider.signature_verification_algorithms;
            ::rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &::rustls::pki_types::CertificateDer<'_>,
            dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            let algorithms = &self.$provider.signature_verification_algorithms;
            ::rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<::rustls::SignatureScheme> {
            self.$provider.signature_verification_algorithms.supported_schemes()
        }
    };
}
