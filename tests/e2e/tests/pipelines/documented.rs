//! The documented walk-throughs, line by line. They share models, so they take turns.
use seldon_e2e::{Case, play_alone};

macro_rules! transcripts {
    ($($name:literal: $file:literal,)+) => {
        pub const CASES: &[Case] = &[$((concat!("documented::", $name), |running| {
            play_alone(running, include_str!(concat!("../../expected/", $file, ".txt")))
        })),+];
    };
}

transcripts! {
    "l7_pipeline_experiment": "L7",
    "l9_pipeline_mirror": "L9",
    "l10_triton_model_four_ways": "L10-triton",
    "l11_pipeline_four_ways": "L11",
    "l12_pipeline_readiness": "L12",
    "l14_tritonclient": "L14",
    "l16_batch_of_requests": "L16-pipelines",
    "l17_pandas_query": "L17",
    "l18_cycle": "L18",
    "l20_income_drift_outlier_explainer": "L20",
    "l21_cifar10_drift_outlier": "L21",
    "l22_speech_to_sentiment": "L22",
    "l26_inference_page": "L26-pipelines",
    "l28_kafka_by_hand": "L28",
    "k14_topics_that_go_with_their_owner": "K14",
    "p1_chain": "P1",
    "p2_tensors_of_steps": "P2",
    "p3_join": "P3",
    "p4_conditional": "P4",
    "p5_tensors_of_the_request": "P5",
    "p6_trigger_joins": "P6",
    "p7_trigger_with_others_data": "P7",
    "p8_error_of_a_step": "P8",
    "p9_concept_manifests": "P9",
    "pp1_fed_by_a_pipeline": "PP1",
    "pp2_two_pipelines_joined": "PP2",
    "pp3_external_trigger": "PP3",
    "pp4_fed_by_a_step": "PP4",
    "pp5_fed_by_steps_of_two": "PP5",
}
