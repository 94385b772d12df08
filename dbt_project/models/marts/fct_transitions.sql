{{ config(meta={'look_back': true}) }}

-- (s, a, r, s', done). A session's last request is terminal when the log is known to have gone on for
-- longer than the idle gap after it, and truncated when it is not: then its s' may still come. It is truncated,
-- too, where the platform ends a session after so many requests: the user did not leave.

with log_end as (

    select max({{ microseconds('event_ts') }}) as end_us
    from {{ ref('int_requests') }}
    where dt <= {{ horizon_day() }}

),

decisions as (

    select * from {{ ref('stg_decisions') }}
    where {{ around_window('dt') }}

),

steps as (

    select
        *,
        lead(request_id) over (partition by user_id, session_id order by step) as next_request_id
    from {{ ref('int_session_requests') }}
    where {{ around_window('dt') }}

),

paired as (

    select
        steps.request_id,
        steps.session_id,
        steps.user_id,
        steps.event_ts,
        steps.step,
        decisions.arm,
        decisions.policy_version,
        decisions.fallback,
        decisions.state,
        decisions.action,
        decisions.action_mean,
        decisions.log_density,
        decisions.exploration_unit,
        decisions.epoch,
        requests.reward,
        requests.watch_reward,
        requests.item_scores,
        requests.item_rewards,
        next_decisions.state as next_state,
        steps.next_request_id is null
        {% if var('session_max_requests') -%}
        and steps.step + 1 < {{ var('session_max_requests') }}
        {% endif -%}
        and not {{ within_gap(microseconds('steps.event_ts'), 'log_end.end_us') }} as done,
        steps.next_request_id,
        decisions.state_spec,
        cast(requests.impressions as int) as impressions,
        {{ seconds('requests.play_ms') }} as play_s,
        cast(requests.positive_interactions as int) as positive_interactions,
        steps.dt
    from steps
    cross join log_end
    inner join decisions
        on
            steps.request_id = decisions.request_id
            and steps.dt = decisions.dt
    inner join {{ ref('int_requests') }} as requests
        on
            steps.request_id = requests.request_id
            and steps.dt = requests.dt
    left join decisions as next_decisions
        on
            steps.next_request_id = next_decisions.request_id
            and decisions.state_spec = next_decisions.state_spec
    where
        {{ in_window('steps.dt') }}
        and {{ in_window('requests.dt') }}
        and decisions.state is not null
        and decisions.state_spec is not null

)

select
    request_id,
    session_id,
    user_id,
    event_ts,
    step,
    arm,
    policy_version,
    fallback,
    state,
    action,
    action_mean,
    log_density,
    exploration_unit,
    epoch,
    reward,
    next_state,
    done,
    -- also where the next request was served without a state, or with one of another specification
    next_state is null and not done as truncated,
    next_request_id,
    state_spec,
    impressions,
    play_s,
    positive_interactions,
    watch_reward,
    item_scores,
    item_rewards,
    dt
from paired
