//! What the declarations of the routes cannot say about parameters of the same name: how
//! their texts look, from where to where their numbers go, and that nobody sends `null`.

use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::schema::{Array, ArrayItems, Object, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};

use super::extract::NUMBER_MAX;

/// The name of the scheme of tokens.
const BEARER: &str = "token";
/// As `config::parse_duration` reads it.
const DURATION: &str = "^[0-9]+ *(ms|s|m|h|d)$";

/// Completes the parameters of all operations, and says of each what credentials it takes.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("a token, where `auth.tokens` is set; `mmapd token` makes one"))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    for (path, item) in &mut document.paths.paths {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.head,
            &mut item.patch,
        ];
        let is_head = |operation: &Operation| operation.operation_id.as_deref() == Some("headKey");
        for operation in operations.into_iter().flatten() {
            if !matches!(path.as_str(), "/livez" | "/readyz") {
                let with_body = !is_head(operation);
                refuse(operation, "401", "`unauthenticated`", with_body);
                refuse(operation, "403", "`forbidden`", with_body);
                let none = SecurityRequirement::default();
                let token = SecurityRequirement::new(BEARER, Vec::<String>::new());
                operation.security = Some(vec![none, token]);
            }
            for one in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(one) = one {
                    parameter(one);
                }
            }
        }
    }
    document
}

/// Adds a refusal that every route may answer with.
fn refuse(operation: &mut Operation, status: &str, description: &str, with_body: bool) {
    let mut response = ResponseBuilder::new().description(description);
    if with_body {
        let problem = Ref::from_schema_name("Problem");
        let content = ContentBuilder::new().schema(Some(problem)).build();
        response = response.content("application/problem+json", content);
    }
    operation.responses.responses.insert(status.to_owned(), RefOr::T(response.build()));
}

fn parameter(parameter: &mut Parameter) {
    let is_text = matches!(parameter.parameter_in, ParameterIn::Query | ParameterIn::Header);
    let Some(RefOr::T(schema)) = &mut parameter.schema else { return };
    if is_text {
        without_null(schema);
    }
    let Schema::Object(object) = schema else { return };
    let is_number = object.schema_type == SchemaType::Type(Type::Integer);
    if is_number && parameter.parameter_in == ParameterIn::Query {
        let least = usize::from(matches!(parameter.name.as_str(), "limit" | "before"));
        object.minimum = Some(least.into());
        object.maximum = usize::try_from(NUMBER_MAX).ok().map(Into::into);
    }
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).into()).collect());
    match parameter.name.as_str() {
        "timeout" | "ttl" => object.pattern = Some(DURATION.into()),
        "consistency" => object.enum_values = words(&["linearizable", "stale", "lease"]),
        "order" => object.enum_values = words(&["asc", "desc"]),
        "role" => object.enum_values = words(&["leader"]),
        _ => {}
    }
}

/// A parameter is left out or given; it is never `null`.
fn without_null(schema: &mut Schema) {
    let of = if let Schema::Object(Object { schema_type, .. }) = schema {
        schema_type
    } else if let Schema::Array(Array { schema_type, items, .. }) = schema {
        if let ArrayItems::RefOrSchema(items) = items
            && let RefOr::T(items) = &mut **items
        {
            without_null(items);
        }
        schema_type
    } else {
        return;
    };
    if let SchemaType::Array(types) = of {
        types.retain(|one| *one != Type::Null);
        if let [only] = &types[..] {
            *of = SchemaType::Type(only.clone());
        }
    }
}
