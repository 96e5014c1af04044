//! Templates: nothing renders to more than it may, and no error shows a value.
#![no_main]

use chittyconnect_operator::core::render::Outputs;
use chittyconnect_operator::core::template::Template;
use libfuzzer_sys::fuzz_target;
use secrecy::SecretString;

/// What no text may repeat.
const CANARY: &str = "cf_canary_0123456789";

fuzz_target!(|made: (u16, &str)| {
    let (most, source) = made;
    let most = usize::from(most);
    let outputs: Outputs = ["cloudflare_token", "npm_token"]
        .map(|name| (name.to_owned(), SecretString::from(CANARY)))
        .into();
    match Template::parse(source) {
        Ok(template) => match template.render(&outputs, most) {
            Ok(rendered) => assert!(rendered.len() <= most),
            Err(error) => assert!(!format!("{error:?}").contains(CANARY) || source.contains(CANARY)),
        },
        Err(error) => assert!(format!("{error:?}").len() < 1000),
    }
});
