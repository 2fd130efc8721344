-- Take or renew a session's lease, as lease.lua says. Returns `answer`.
{lease.lua}
return answer
