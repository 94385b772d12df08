{{ config(meta={'look_back': true}) }}

-- A request counts for the policy that served it; a session for the policy and the day of its first
-- request, with everything that it brought, be it after midnight.

with requests as (

    select
        requests.*,
        sessions.session_id,
        sessions.step
    from {{ ref('int_requests') }} as requests
    inner join {{ ref('int_session_requests') }} as sessions
        on
            requests.request_id = sessions.request_id
            and requests.dt = sessions.dt
    where
        {{ around_window('requests.dt') }}
        and {{ around_window('sessions.dt') }}

),

request_totals as (

    select
        dt,
        arm,
        policy_version,
        cast(count(*) as bigint) as requests,
        cast(sum(impressions) as bigint) as impressions,
        cast(count(distinct user_id) as bigint) as users,
        sum({{ exact_reward('reward') }}) as reward,
        sum(play_ms) as play_ms,
        sum(plays) as plays,
        sum(positive_plays) as positive_plays
    from requests
    where {{ in_window('dt') }}
    group by dt, arm, policy_version

),

session_returns as (

    select
        user_id,
        session_id,
        count(*) as requests,
        sum({{ exact_reward('reward') }}) as session_return
    from requests
    group by user_id, session_id

),

session_totals as (

    select
        firsts.dt,
        firsts.arm,
        firsts.policy_version,
        cast(count(*) as bigint) as sessions,
        cast(sum(session_returns.requests) as bigint) as requests,
        cast(sum({{ exact_return('session_returns.session_return') }}) as double) as sum_return,
        cast(
            sum(
                {{ exact_return('session_returns.session_return') }}
                * {{ exact_return('session_returns.session_return') }}
            ) as double
        ) as sum_squares
    from requests as firsts
    inner join session_returns
        on
            firsts.user_id = session_returns.user_id
            and firsts.session_id = session_returns.session_id
    where
        firsts.step = 0
        and {{ in_window('firsts.dt') }}
    group by firsts.dt, firsts.arm, firsts.policy_version

),

user_days as (

    select distinct
        user_id,
        dt
    from requests

),

known_days as (

    select distinct dt from {{ ref('int_requests') }}
    where dt <= {{ horizon_day() }}

),

returns as (

    select
        served.dt,
        served.arm,
        served.policy_version,
        count(*) as users,
        count(seen_again.user_id) as returned_users
    from (
        select distinct
            dt,
            arm,
            policy_version,
            user_id
        from requests
        where {{ in_window('dt') }}
    ) as served
    inner join known_days on {{ days_after('served.dt', 1) }} = known_days.dt
    left join user_days as seen_again
        on
            served.user_id = seen_again.user_id
            and {{ days_after('served.dt', 1) }} = seen_again.dt
    group by served.dt, served.arm, served.policy_version

)

select
    request_totals.arm,
    request_totals.policy_version,
    request_totals.requests,
    request_totals.impressions,
    coalesce(session_totals.sessions, 0) as sessions,
    request_totals.users,
    cast(request_totals.reward as double) / request_totals.requests as reward_mean,
    session_totals.sum_return / session_totals.sessions as session_return_mean,
    case
        when session_totals.sessions > 1
            then
                sqrt(
                    greatest(
                        session_totals.sum_squares
                        - session_totals.sum_return * session_totals.sum_return / session_totals.sessions,
                        0
                    )
                    / (session_totals.sessions - 1)
                )
    end as session_return_std,
    {{ seconds('request_totals.play_ms') }} as play_s,
    {{ seconds('request_totals.play_ms') }} / request_totals.users as adtime_s,
    {{ ratio('request_totals.positive_plays', 'request_totals.plays') }} as upirate,
    cast(session_totals.requests as double) / session_totals.sessions as session_length_mean,
    cast(returns.returned_users as double) / returns.users as return_rate,
    request_totals.dt
from request_totals
left join session_totals
    on
        request_totals.dt = session_totals.dt
        and request_totals.arm = session_totals.arm
        and request_totals.policy_version = session_totals.policy_version
left join returns
    on
        request_totals.dt = returns.dt
        and request_totals.arm = returns.arm
        and request_totals.policy_version = returns.policy_version
