with impressions as (

    select
        *,
        duration_ms > 0 as duration_known,
        play_ms > 0 as was_played,
        {% for signal in var('signals') if signal.positive_interaction -%}
        signal_{{ signal.name }} > 0 or {% endfor -%}
        1 = 0 as was_positive,
        least(play_ms, {{ var('play_time_cap_ms') }}) as capped_play_ms,
        case when duration_ms > 0 then {{ completion('play_ms', 'duration_ms') }} end as completion
    from {{ ref('stg_impressions') }}
    where {{ in_window('dt') }}

),

shown as (

    select
        request_id,
        dt,
        min(user_id) as user_id,
        min(served_session_id) as served_session_id,
        min(event_ts) as event_ts,
        max(feedback_ts) as feedback_ts,
        cast(count(*) as bigint) as impressions,
        {%- for signal in var('signals') %}
        cast(sum(signal_{{ signal.name }}) as bigint) as {{ signal.name }}_count,
        {%- endfor %}
        cast(sum(play_ms) as bigint) as play_ms,
        cast(sum(capped_play_ms) as bigint) as capped_play_ms,
        cast(sum(case when duration_known then 1 else 0 end) as bigint) as known_durations,
        sum(completion) as completion,
        cast(sum(case when was_positive then 1 else 0 end) as bigint) as positive_interactions,
        cast(sum(case when was_played then 1 else 0 end) as bigint) as plays,
        cast(sum(case when was_played and was_positive then 1 else 0 end) as bigint) as positive_plays,
        {%- for head in var('heads') %}
        cast(sum({{ exact_prediction('p_' ~ head) }}) as double) as shown_p_{{ head }},
        {%- endfor %}
        {{ floats_in_order(head_columns(), ['shown_position', 'item_id']) }} as item_scores,
        {{ floats_in_order(
            [reward('capped_play_ms', 'coalesce(completion, 0)', 'signal_', '')], ['shown_position', 'item_id']
        ) }} as item_rewards
    from impressions
    group by request_id, dt

),

decisions as (

    select * from {{ ref('stg_decisions') }}
    where {{ in_window('dt') }}

),

joined as (

    select
        coalesce(decisions.request_id, shown.request_id) as request_id,
        coalesce(decisions.user_id, shown.user_id) as user_id,
        coalesce(decisions.served_session_id, shown.served_session_id) as served_session_id,
        coalesce(decisions.event_ts, shown.event_ts) as event_ts,
        shown.feedback_ts,
        coalesce(decisions.arm, 'unknown') as arm,
        coalesce(decisions.policy_version, 'unknown') as policy_version,
        decisions.request_id is not null as has_decision,
        -- without a decision log there is no time of feedback either: it counts as immediate
        shown.feedback_ts is not null or decisions.request_id is null as has_feedback,
        coalesce(shown.impressions, 0) as impressions,
        {%- for signal in var('signals') %}
        coalesce(shown.{{ signal.name }}_count, 0) as {{ signal.name }}_count,
        {%- endfor %}
        coalesce(shown.play_ms, 0) as play_ms,
        coalesce(shown.capped_play_ms, 0) as capped_play_ms,
        coalesce(shown.known_durations, 0) as known_durations,
        coalesce(cast(shown.completion as decimal(28, 12)), 0) as completion,
        coalesce(shown.positive_interactions, 0) as positive_interactions,
        coalesce(shown.plays, 0) as plays,
        coalesce(shown.positive_plays, 0) as positive_plays,
        {%- for head in var('heads') %}
        coalesce(shown.shown_p_{{ head }}, 0) as shown_p_{{ head }},
        {%- endfor %}
        shown.item_scores,
        shown.item_rewards,
        coalesce(decisions.dt, shown.dt) as dt
    from decisions
    full outer join shown
        on decisions.request_id = shown.request_id and decisions.dt = shown.dt

),

rewarded as (

    select
        *,
        -- summed over the shown items
        {{ watch_reward('capped_play_ms', 'completion') }} as watch_reward,
        {{ reward('capped_play_ms', 'completion', '', '_count') }} as reward
    from joined

)

select
    request_id,
    user_id,
    served_session_id,
    event_ts,
    feedback_ts,
    arm,
    policy_version,
    has_decision,
    has_feedback,
    impressions,
    {%- for signal in var('signals') %}
    {{ signal.name }}_count,
    {%- endfor %}
    play_ms,
    known_durations,
    completion,
    positive_interactions,
    plays,
    positive_plays,
    watch_reward,
    reward,
    {%- for head in var('heads') %}
    shown_p_{{ head }},
    {%- endfor %}
    item_scores,
    item_rewards,
    dt
from rewarded
