/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who owns a VM: the ownership protocol of docs/ownership.md, whose rule names
 * stand in [brackets] where the model follows them.  test_model.py searches it.
 *
 * Hosts 0..NATT.  Host 0 runs the VM at first.  Attempt k (0-based) moves it
 * from whoever owns it then to host k+1; a failed attempt leaves its destination
 * alive and slow.  Servers A (0, the arbiter) and B (1) hold one page each.
 *
 * One process of guarded steps, so that `else` is a state where nothing can
 * happen any more: there I3 is asserted.  Requests: one outstanding for each
 * host and server; when a connection breaks, a request was lost, or has taken
 * effect without an answer, or takes effect at any later time ("late").
 *
 * -DFIRST    host 0 still has to open the sessions (first split); else it owns
 *            committed sessions and all its pages are remote
 * -DNATT=n   attempts;  -DBREAKS -DCRASH -DRESTART  budgets;  -DLATE=n pool
 * -DMIX=x    host 0 owns a committed session on one server, and in the attempt
 *            opens one on x, which is new (N to N)
 * -DPAGING   guest writes, page-in, Put, Discard, with budgets W P D
 * -DCONT     destination with autostart off: Commit belongs to `cont`
 * -DMERGE    the last owner takes all pages home and drops the sessions
 * -DLOSE     a restarting server has lost its arena (I1 only)
 * -DVERSION_BY_EPOCH  page versions begin with the epoch, as the pager's do
 * -DBEFORE   the rules that the first release of split migration had
 * -DM_...    one rule broken
 */
#ifndef NATT
#define NATT 1
#endif
#ifndef BREAKS
#define BREAKS 1
#endif
#ifndef CRASH
#define CRASH 1
#endif
#ifndef RESTART
#define RESTART 0
#endif
#ifndef LATE
#define LATE 1
#endif
#ifndef W
#define W 1
#endif
#ifndef P
#define P 2
#endif
#ifndef D
#define D 1
#endif

/* ---- which rules hold ---------------------------------------------------- */

#ifdef BEFORE
#define FIRST
#define M_NOTOMB		/* a dropped session is no session; NOSESS: in doubt */
#define M_ORPHAN		/* any uncommitted session without connection */
#define M_GIVEUP		/* gives up after a Commit that was not answered */
#define M_ASKONCE
#define M_WRITE_CLAIMED
#endif


#ifdef NO_I2
#define I2(x) skip
#else
#define I2(x) assert(x)
#endif

/* ---- state --------------------------------------------------------------- */

#define NH (NATT + 1)
#define A 0
#define B 1

/* sessions: state, epoch, committed epoch, ticket (attempt + 1), claimed,
 * hosts bound; the page: version (0: none), content */
#define NONE 0
#define LIVE 1
#define TOMB 2
byte st[2], ep[2], ce[2], tk[2], bd[2], pver[2], pcon[2];
bit cl[2];
byte tr[2];			/* what the guest wrote last to the page */

/* requests */
#define OPEN 1
#define OFFER 2
#define CLAIM 3
#define RECLAIM 4
#define COMMIT 5
#define DROP 6
#define PUT 7
#define DISC 8
/* answers */
#define OK 1
#define REF 2			/* fenced, or offer closed */
#define SUPER 3			/* another side has committed */
#define GONE 4			/* tombstone, nobody has committed past you */
#define NOSESS 5
#define STALE 6			/* your epoch is old, but only you have raised it */
/* slot h*2+x: 0 idle, 1 asked, 2 answered; op, epoch, ticket/version/result,
 * content */
byte qs[NH * 2], qo[NH * 2], qe[NH * 2], qt[NH * 2], qc[NH * 2];
/* late requests: op, server, epoch, ticket/version, content, host */
byte zo[LATE], zx[LATE], ze[LATE], zt[LATE], zc[LATE], zh[LATE];

/* hosts */
#define RUN 1
#define OFFERING 2
#define READY 3
#define END1 4			/* VM stopped, end of remote-memory sent */
#define END2 5			/* device state sent */
#define ASK 6
#define TAKE 7
#define DONE 8			/* must never run again */
#define ALONE 10
#define DOUBT 11
#define POST 12			/* told "loaded"; `cont` asks the arbiter */
#define MERGING 13
#define IDLE 20
#define CLAIMING 21
#define LOADED 22		/* autostart off: waits for `cont` */
#define COMMITTING 23
#define OWN 24			/* runs; commits on the other servers */
#define DEAD 25			/* has given up */
#define CRASHED 30
byte ph[NH], okx[NH], lc[NH], cnt[NH], kk[NH];
byte my[NH * 2], lv[NH * 2];
bit rn[NH], cs[NH];		/* runs the VM; has ever sent a Commit */
bit fs;				/* host 0's sessions are new */
byte ak[2];			/* FIRST and PAGING: content + 1 acknowledged */

/* attempts: source, sent, got, return path, broken, local pages at END1 */
byte src[NATT], snt[NATT], got[NATT], rp[NATT], smap[NATT];
bit sb[NATT];
byte nk;			/* attempts begun */
byte br, cr, rs, nw, np, nd;	/* used of the budgets */

/* ghosts */
byte own;			/* as the arbiter has it */
bit gRe[NATT];			/* the arbiter granted a Reclaim made in this attempt */
bit gGu[NATT];			/* the destination gave up of its own will */
bit gOr;			/* a session died of age under a destination that was to claim it */

#ifdef BFS_		/* spin's breadth-first search knows no hidden variables */
byte res, val, i, tmp;
#else
hidden byte res, val, i, tmp;
#endif

#define Q(h, x) (h * 2 + x)
inline unbind(h)
{
	bd[0] = bd[0] & ~(1 << h); bd[1] = bd[1] & ~(1 << h)
}

/* What is of no use any more would only make states differ. */
inline forget(h)
{
	my[Q(h, 0)] = 0; my[Q(h, 1)] = 0; lc[h] = 0; lv[Q(h, 0)] = 0; lv[Q(h, 1)] = 0; cnt[h] = 0;
		kk[h] = 0
}

/* ---- what a host does without being told --------------------------------- */

#define ALL 3
#define MASK(x) (1 << x)
#define TAKEN(x) (16 << x)	/* in TAKE: reclaimed, still to be dropped */
#define alive(h) (ph[h] != CRASHED)
#define QUIET(h) (qs[Q(h, 0)] == 0 && qs[Q(h, 1)] == 0)
#define PREV(h) (h > 0 -> h - 1 : 0)
/* Host 0's session on x is new, of the attempt. */
#if defined(MIX) && MIX == 0
#define NEW(h, x) (h == 0 && x == A)
#elif defined(MIX)
#define NEW(h, x) (h == 0 && x == B)
#else
#define NEW(h, x) (h == 0 && fs)
#endif
#define ANYNEW(h) (NEW(h, 0) || NEW(h, 1))

#ifdef M_ANYORDER
#define ASKS(h, x) (x == A || (!(okx[h] & 2) && my[Q(h, B)]))
#elif defined(M_ASKB)
#define ASKS(h, x) 1
#elif defined(M_ASKONCE)
#define ASKS(h, x) (x == A && !(okx[h] & 4))
#else
#define ASKS(h, x) (x == A)
#endif

#ifdef M_COMMIT_EARLY
#define CLAIMED(h) (okx[h] & 1)
#elif defined(M_COMMIT_B_FIRST)
#define CLAIMED(h) (okx[h] == 7)
#else
#define CLAIMED(h) (okx[h] == ALL)
#endif

#define CLAIMS(h) 1

#if (defined(CONT) && !defined(M_COMMIT_AT_LOAD))
#define GO_ON(h) ph[h] = LOADED; \
	if \
	:: !sb[PREV(h)] -> rp[PREV(h)] = 1 \
	:: else \
	fi
#elif defined(M_TELL_EARLY)
#define GO_ON(h) ph[h] = COMMITTING; \
	if \
	:: !sb[PREV(h)] -> rp[PREV(h)] = 1 \
	:: else \
	fi
#else
#define GO_ON(h) ph[h] = COMMITTING
#endif

inline ask(h, x, op, e, t, c)
{
	qs[Q(h, x)] = 1; qo[Q(h, x)] = op; qe[Q(h, x)] = e; qt[Q(h, x)] = t; qc[Q(h, x)] = c;
	printf("H%d asks %c: op %d epoch %d arg %d\n", h, 65 + x, op, e, t)
}

/* Requests go out as soon as there is a reason; how long they take is another
 * matter. */
inline urge_with(h, x)
{
	if
	:: qs[Q(h, x)] != 0
	:: qs[Q(h, x)] == 0 && ph[h] == OFFERING && !(okx[h] & MASK(x)) ->
		if
		:: NEW(h, x) -> my[Q(h, x)] = 1; ask(h, x, OPEN, 0, kk[h], 0)
		:: else -> ask(h, x, OFFER, my[Q(h, x)], kk[h], 0)
		fi
	:: qs[Q(h, x)] == 0 && ph[h] == ASK && ASKS(h, x) ->
#ifdef M_ASKONCE
		okx[h] = okx[h] | 4;
#endif
		ask(h, x, RECLAIM, my[Q(h, x)], kk[h], 0)
	:: qs[Q(h, x)] == 0 && ph[h] == TAKE && !(okx[h] & MASK(x)) ->
		/* [withdraw]; what this attempt opened is dropped at once */
		if
		:: okx[h] & TAKEN(x) -> ask(h, x, DROP, my[Q(h, x)], 0, 0)
		:: else -> ask(h, x, RECLAIM, my[Q(h, x)], kk[h], 0)
		fi
	:: qs[Q(h, x)] == 0 && ph[h] == MERGING && !(okx[h] & MASK(x)) ->
		if
		:: my[Q(h, x)] == 0 -> okx[h] = okx[h] | MASK(x)
		:: else -> ask(h, x, DROP, my[Q(h, x)], 0, 0)
		fi
	:: qs[Q(h, x)] == 0 && ph[h] == CLAIMING && CLAIMS(h) && !(okx[h] & MASK(x)) ->
		ask(h, x, CLAIM, my[Q(h, x)], h, 0)
#ifdef M_COMMIT_B_FIRST
	:: qs[Q(h, x)] == 0 && x == B && ph[h] == CLAIMING && okx[h] == ALL && got[PREV(h)] == 2 ->
		ask(h, x, COMMIT, my[Q(h, x)], 0, 0)
#endif
	:: qs[Q(h, x)] == 0 && x == A && ph[h] == COMMITTING ->
		cs[h] = 1;
#ifdef M_RUN_EARLY
		rn[h] = 1;
#endif
		ask(h, x, COMMIT, my[Q(h, x)], 0, 0)
	:: qs[Q(h, x)] == 0 && ph[h] == OWN && !(okx[h] & MASK(x)) ->
		ask(h, x, COMMIT, my[Q(h, x)], 0, 0)
	:: else
	fi
}

inline urge(h)
{
	if
	:: h > 0 && ph[h] == CLAIMING && CLAIMED(h) && got[PREV(h)] == 2 ->
		okx[h] = okx[h] & ALL; GO_ON(h);
		printf("H%d has loaded everything and claimed\n", h)
	:: ph[h] == TAKE && (okx[h] & ALL) == ALL && QUIET(h) ->
		okx[h] = 0; kk[h] = 0;
#ifdef MIX
		ph[h] = RUN;
		if
		:: ANYNEW(h) -> my[Q(h, MIX)] = 0; bd[MIX] = bd[MIX] & ~(1 << h)
		:: else
		fi
#else
		if
		:: ANYNEW(h) -> ph[h] = ALONE; unbind(h); my[Q(h, 0)] = 0; my[Q(h, 1)] = 0
		:: else -> ph[h] = RUN
		fi
#endif
	:: ph[h] == OWN && okx[h] == ALL && QUIET(h) -> ph[h] = RUN; kk[h] = 0; okx[h] = 0
	:: else
	fi;
	urge_with(h, 0);
	urge_with(h, 1);
	if
	:: ph[h] == MERGING && okx[h] == ALL && QUIET(h) ->
		ph[h] = ALONE; okx[h] = 0; unbind(h); my[Q(h, 0)] = 0; my[Q(h, 1)] = 0
	:: else
	fi
}

/* I1, I2 */
inline check()
{
	urge(0); urge(1);
#if NATT > 1
	urge(2);
#endif
	tmp = 0; i = 0;
	do
	:: i < NH -> tmp = tmp + rn[i]; i++
	:: else -> break
	od;
	assert(tmp <= 1);	/* I1: at most one side runs the VM */
#if !defined(LOSE) && !defined(NO_I2)
	i = 0;
	do
	:: i < NH ->
		if
		:: rn[i] ->
			/* I2: the running side's pages are where it looks for them */
			assert((lc[i] & 1) -> lv[Q(i, 0)] == tr[0] :
			       (st[0] == LIVE && pver[0] && pcon[0] == tr[0]));
			assert((lc[i] & 2) -> lv[Q(i, 1)] == tr[1] :
			       (st[1] == LIVE && pver[1] && pcon[1] == tr[1]))
		:: else
		fi;
		i++
	:: else -> break
	od;
#endif
#ifdef V1	/* vacuity: each of these must be violated */
	assert(!(rn[2] && src[1] == 1 && ph[0] == ASK));
#endif
#ifdef V2
	assert(!(rn[2] && src[1] == 0 && ph[1] == CLAIMING));
#endif
#ifdef V3
	assert(!(rn[2] && src[1] == 1 && ph[0] == DONE && sb[0]));
#endif
#ifdef V4
	assert(!(rn[0] && ph[0] == TAKE && st[0] == TOMB));
#endif
#ifdef V5
	assert(!(rn[1] && !alive(0) && ph[1] == RUN));
#endif
#ifdef V6
	assert(!(cl[1] == 0 && st[1] == TOMB && st[0] == TOMB && !alive(0) && ph[1] == DEAD && nk == 1));
#endif
#ifdef V7
	assert(!(res == STALE && ph[0] == ASK));
#endif
#ifdef V9
	assert(!(rn[1] && ph[1] == RUN));
#endif
#ifdef V8
	assert(!(ph[1] == ALONE && ph[0] == DONE && sb[0]));
#endif
	tmp = 0; i = 0; res = 0; val = 0
}

inline idle(q) { qs[q] = 0; qo[q] = 0; qe[q] = 0; qt[q] = 0; qc[q] = 0 }

inline end_session(x)
{
#if defined(M_NOTOMB) || defined(M_NOTOMB_RUN)
	st[x] = NONE; ce[x] = 0;
#else
	st[x] = TOMB;
#endif
#ifdef M_TOMB_NOCE
	ce[x] = 0;
#endif
	ep[x] = 0; tk[x] = 0; cl[x] = 0; bd[x] = 0; pver[x] = 0; pcon[x] = 0
}

/* The server x does what host h asked. */
inline serve(h, x, op, e, t, c)
{
	res = REF; val = 0;
	if
	:: st[x] == NONE ->
		res = NOSESS;
		if
		:: op == OPEN ->	/* [open-fresh] */
			st[x] = LIVE; ep[x] = 1; ce[x] = 0; tk[x] = t; cl[x] = 0;
#ifndef PAGING
			pver[x] = 1; pcon[x] = 0;
#endif
			res = OK; val = 1
		:: else
		fi
	:: st[x] == TOMB ->
		if
		:: op == RECLAIM && ce[x] <= e -> res = GONE	/* [reclaim-gone] */
		:: op == RECLAIM && ce[x] > e -> res = SUPER
		:: op == DROP -> res = OK
#ifdef M_OPEN_TOMB
		:: op == OPEN ->
			st[x] = LIVE; ep[x] = 1; ce[x] = 0; tk[x] = t; cl[x] = 0;
			pver[x] = 1; pcon[x] = 0; res = OK; val = 1
#endif
		:: else
		fi
	:: st[x] == LIVE && op == OPEN ->
		if
		:: ep[x] == 1 && tk[x] == t && !cl[x] -> res = OK; val = 1
		:: else
		fi
	:: st[x] == LIVE && op == OFFER ->
		if
#ifdef M_OFFER_ANY
		:: !cl[x] -> tk[x] = t; res = OK; val = ep[x]
#else
		:: ep[x] == e && !cl[x] -> tk[x] = t; res = OK; val = ep[x]	/* [offer-epoch] */
#endif
		:: else
		fi
#ifdef BEFORE
	:: st[x] == LIVE && (op == CLAIM || op == RECLAIM) ->
		if
		:: ce[x] == 0 ->
			ep[x] = ep[x] + 1; res = OK; val = ep[x];
			if
			:: op == RECLAIM && x == A -> gRe[t - 1] = 1
			:: else
			fi
		:: else -> res = SUPER
		fi
#else
	:: st[x] == LIVE && op == CLAIM ->
		if
#if defined(M_CLAIM_ANY)
		:: ce[x] < ep[x] || tk[x] == t ->
			ep[x] = ep[x] + 1; cl[x] = 1; res = OK; val = ep[x]
#elif defined(M_CLAIM_TICKET)
		:: tk[x] == t && !cl[x] ->
			ep[x] = ep[x] + 1; cl[x] = 1; res = OK; val = ep[x]
#elif defined(M_CLAIM_EPOCH)
		:: tk[x] && !cl[x] && ep[x] == e ->
			ep[x] = ep[x] + 1; cl[x] = 1; res = OK; val = ep[x]
#else
		:: tk[x] == t && !cl[x] && ep[x] == e ->	/* [claim-ticket] [claim-epoch] */
			ep[x] = ep[x] + 1; cl[x] = 1; res = OK; val = ep[x]
#endif
#ifndef M_CLAIM_ONCE
		:: tk[x] == t && cl[x] && ep[x] == e + 1 -> res = OK; val = ep[x]	/* [claim-repeat] */
#endif
		:: else
		fi
	:: st[x] == LIVE && op == RECLAIM ->
		if
#ifndef M_RECLAIM_ALWAYS
		:: ce[x] > e -> res = SUPER	/* [reclaim-committed] */
#endif
#ifdef M_RECLAIM_LOOSE
		:: else ->
#else
		:: ce[x] <= e && e < ep[x] - cl[x] -> res = STALE; val = ep[x] - cl[x]
		:: e > ep[x] - cl[x]	/* a claimant: refused */
		:: else ->
#endif
#ifdef M_RECLAIM_NOEPOCH
			tk[x] = 0;	/* the offer is closed, and that is all */
			res = OK; val = ep[x];
#else
			ep[x] = ep[x] + 1;
#ifndef M_RECLAIM_NOCLOSE
			tk[x] = 0;
#endif
			cl[x] = 0; res = OK; val = ep[x];
#endif
#ifdef M_RECLAIM_COMMITS
			ce[x] = ep[x];
#endif
			if
			:: x == A -> gRe[t - 1] = 1
			:: else
			fi
		fi
#endif
	:: st[x] == LIVE && op == COMMIT ->
		if
#ifdef BEFORE
		:: ep[x] == e ->
#else
#ifdef M_COMMIT_ANY
		:: cl[x] || ce[x] == e || ep[x] > e ->
#else
		:: ep[x] == e && (cl[x] || ce[x] == e) ->	/* [commit-claimed] [commit-repeat] */
#endif
#endif
			res = OK; val = ep[x];
			if
#ifdef M_COMMIT_AGAIN
			:: 1 ->
#else
			:: ce[x] != ep[x] ->	/* a repeated Commit changes nothing */
#endif
				ce[x] = ep[x]; cl[x] = 0; tk[x] = 0;
				if
				:: x == A -> own = h
				:: else
				fi
			:: else
			fi
		:: else
		fi
	:: st[x] == LIVE && op == DROP ->
		if
#if defined(M_DROP_CLAIMED) || defined(BEFORE)
		:: ep[x] == e -> end_session(x); res = OK
#else
		:: ep[x] == e && !cl[x] -> end_session(x); res = OK
#endif
		:: else
		fi
	:: st[x] == LIVE && op == PUT ->
		if
#ifdef M_WRITE_CLAIMED
		:: ep[x] == e ->
#else
#ifdef M_PUT_NOFENCE
		:: 1 ->
#else
#ifdef M_WRITE_IF_COMMITTED
		:: ep[x] == e && ce[x] == e ->
#else
		:: ep[x] == e && !cl[x] ->
#endif
#endif
#endif
			res = OK;
			if
			:: t >= pver[x] -> pver[x] = t; pcon[x] = c
			:: else
			fi
		:: else
		fi
	:: st[x] == LIVE && op == DISC ->
		if
#ifdef M_WRITE_CLAIMED
		:: ep[x] == e ->
#else
#ifdef M_DISC_NOFENCE
		:: 1 ->
#else
		:: ep[x] == e && !cl[x] ->
#endif
#endif
			res = OK;
			if
#ifdef M_DISC_NOVERSION
			:: 1 -> pver[x] = 0; pcon[x] = 0
#else
			:: pver[x] <= t -> pver[x] = 0; pcon[x] = 0
			:: else
#endif
			fi
		:: else
		fi
	fi;
	assert(ep[x] < 12)
}

/* Host h may read on server x. */
#ifdef M_READ_FENCED
#define readable(h, x) (st[x] == LIVE && my[Q(h, x)] == ep[x])
#else
#define readable(h, x) (st[x] == LIVE && (my[Q(h, x)] == ep[x] || (cl[x] && my[Q(h, \
	x)] + 1 == ep[x])))
#endif
/* ... and write. */
#ifdef M_WRITE_IF_COMMITTED
#define writable(h, x) (st[x] == LIVE && my[Q(h, x)] == ep[x] && ce[x] == ep[x])
#else
#define writable(h, x) (st[x] == LIVE && my[Q(h, x)] == ep[x] && !cl[x])
#endif

inline give_up(h)
{
	/* of its own will or not: it will never run the VM */
	if
	:: !sb[h - 1] -> rp[h - 1] = 2
	:: else
	fi;
#ifdef M_DROP_CLAIMED
	/* cleans up what it holds */
	ph[h] = DEAD;
	if
	:: my[Q(h, 0)] && (okx[h] & 1) && st[0] == LIVE && ep[0] == my[Q(h, 0)] -> end_session(0)
	:: else
	fi;
	if
	:: my[Q(h, 1)] && (okx[h] & 2) && st[1] == LIVE && ep[1] == my[Q(h, 1)] -> end_session(1)
	:: else
	fi;
#else
	ph[h] = DEAD;
#endif
	okx[h] = 0;
	unbind(h); forget(h);
	printf("H%d gives up\n", h)
}

inline resume(h)
{
	rn[h] = 1; ph[h] = TAKE; okx[h] = okx[h] & (ALL | TAKEN(A) | TAKEN(B));
	printf("H%d resumes the VM\n", h)
}

/* Host h hears server x's answer. */
inline hear(h, x)
{
	res = qt[Q(h, x)]; val = qe[Q(h, x)]; tmp = qo[Q(h, x)];
	idle(Q(h, x));
	printf("H%d hears from %c: op %d result %d epoch %d\n", h, 65 + x, tmp, res, val);
	if
	:: tmp == OPEN || tmp == OFFER ->
		if
		:: ph[h] == OFFERING && res == OK ->
			my[Q(h, x)] = val; okx[h] = okx[h] | (1 << x);
			if
			:: okx[h] == ALL -> ph[h] = READY; okx[h] = 0
			:: else
			fi
		:: ph[h] == OFFERING && res != OK ->
			sb[kk[h] - 1] = 1; okx[h] = 0; ph[h] = TAKE
		:: else
		fi
	:: tmp == CLAIM ->
		if
		:: ph[h] == CLAIMING && res == OK ->
			my[Q(h, x)] = val; okx[h] = okx[h] | (1 << x)
		:: ph[h] == CLAIMING && res != OK -> give_up(h)
		:: else
		fi
	:: tmp == RECLAIM ->
		if
#ifdef M_STALE_SUPER
		:: res == STALE && ph[h] == ASK -> ph[h] = DONE; okx[h] = 0; unbind(h)
		:: res == STALE && ph[h] == TAKE -> my[Q(h, x)] = val
#else
		:: res == STALE && (ph[h] == ASK || ph[h] == TAKE) -> my[Q(h, x)] = val
#endif
		:: ph[h] == ASK && x == A && res == OK ->	/* [ask] */
			my[Q(h, x)] = val; okx[h] = okx[h] | (NEW(h, x) -> TAKEN(x) : MASK(x)); resume(h)
#ifdef M_ASKB
		:: ph[h] == ASK && x == B && res == OK ->
			my[Q(h, x)] = val; okx[h] = okx[h] | (NEW(h, x) -> TAKEN(x) : MASK(x)); resume(h)
		:: ph[h] == ASK && x == B && res == SUPER ->
			ph[h] = DONE; unbind(h)
#else
		/* only with M_ANYORDER */
		:: ph[h] == ASK && x == B && res == OK ->
			my[Q(h, x)] = val; okx[h] = okx[h] | 2
#endif
		:: ph[h] == ASK && x == A && res == SUPER ->
			ph[h] = DONE; okx[h] = 0; unbind(h); forget(h); printf("H%d: the VM runs elsewhere\n", h)
#ifdef M_GONE_SUPER
		:: ph[h] == ASK && x == A && res == GONE -> ph[h] = DONE; okx[h] = 0; unbind(h)
#endif
		:: ph[h] == ASK && x == A && res == GONE ->
			/* only while nobody had committed the session, so all pages are here */
			I2(lc[h] & 1);
			okx[h] = okx[h] | 1; my[Q(h, x)] = 0; resume(h)
		:: ph[h] == ASK && x == A && res == NOSESS ->
#ifdef M_NOTOMB_RUN
			okx[h] = okx[h] | 1; my[Q(h, x)] = 0; resume(h)
#else
			ph[h] = DOUBT; printf("H%d is in doubt for good\n", h)
#endif
		:: ph[h] == TAKE && res == OK ->
			my[Q(h, x)] = val; okx[h] = okx[h] | (NEW(h, x) -> TAKEN(x) : MASK(x))
#ifdef BEFORE
		:: ph[h] == TAKE && (res == SUPER || res == NOSESS) ->
			/* (void)drop_one() */
			okx[h] = okx[h] | (1 << x); my[Q(h, x)] = 0
#else
		:: ph[h] == TAKE && res == SUPER -> I2(0)	/* I2: a running owner is shut out */
		:: ph[h] == TAKE && (res == GONE || res == NOSESS) ->
#ifndef LOSE
			I2(lc[h] & (1 << x));		/* I2: its pages are lost */
#endif
			okx[h] = okx[h] | (1 << x); my[Q(h, x)] = 0
#endif
		:: else
		fi
	:: tmp == COMMIT ->
		if
		:: ph[h] == COMMITTING && x == A && res == OK ->
#ifdef M_COMMIT_AT_LOAD
			ph[h] = LOADED;
#else
			ph[h] = OWN; okx[h] = 1; rn[h] = 1;
#endif
#if !defined(CONT) || defined(M_COMMIT_AT_LOAD)
			if
			:: !sb[h - 1] -> rp[h - 1] = 1
			:: else
			fi;
#endif
			printf("H%d has committed and runs the VM\n", h)
		:: ph[h] == COMMITTING && x == A && res != OK -> rn[h] = 0; give_up(h)
#ifdef M_COMMIT_B_FIRST
		:: ph[h] == CLAIMING && x == B ->
			okx[h] = okx[h] | 4
#endif
		:: ph[h] == OWN && res == OK ->
			okx[h] = okx[h] | (1 << x)
#if   !defined(LOSE)
		:: ph[h] == OWN && res != OK -> I2(0)	/* I2: the owner is shut out */
#else
		:: ph[h] == OWN && res != OK -> okx[h] = okx[h] | (1 << x)
#endif
		:: else
		fi
	:: tmp == DROP ->
		if
		:: ph[h] == TAKE || ph[h] == MERGING -> okx[h] = okx[h] | (1 << x)
		:: else
		fi
	:: tmp == PUT ->
		if
		:: h == 0 && fs && res == OK -> ak[x] = lv[Q(h, x)] + 1
		:: h == 0 && fs && res != OK && ph[h] == READY ->
			sb[kk[h] - 1] = 1; okx[h] = 0; ph[h] = TAKE
		:: !(h == 0 && fs) && rn[h] && res == OK -> lc[h] = lc[h] & ~(1 << x)
		:: else
		fi
	:: else
	fi
}

#define ACTIVE(h, x) (qs[Q(h, x)] == 0 && alive(h))

/* ---- steps of host h with server x --------------------------------------- */

/* The host still waits for the answer. */
#define WANTED(h, x) (alive(h) && ph[h] != DEAD && ph[h] != DONE && ( \
	((qo[Q(h, x)] == OPEN || qo[Q(h, x)] == OFFER) && ph[h] == OFFERING) || \
	(qo[Q(h, x)] == CLAIM && ph[h] == CLAIMING) || \
	(qo[Q(h, x)] == RECLAIM && (ph[h] == ASK || ph[h] == TAKE || ph[h] == OWN)) || \
	(qo[Q(h, x)] == COMMIT && (ph[h] == COMMITTING || ph[h] == OWN || ph[h] == CLAIMING)) || \
	(qo[Q(h, x)] == DROP && (ph[h] == TAKE || ph[h] == MERGING)) || \
	qo[Q(h, x)] == PUT || qo[Q(h, x)] == DISC))
/* Hearing this answer at once or later makes no difference to anybody else. */
#define AT_ONCE(h, x) (qo[Q(h, x)] == OPEN || qo[Q(h, x)] == OFFER || qo[Q(h, \
	x)] == CLAIM || qo[Q(h, x)] == DROP || \
	(qo[Q(h, x)] == RECLAIM && ph[h] == TAKE) || (qo[Q(h, x)] == COMMIT && ph[h] == OWN && \
		!(okx[h] & 8)))

#define S_COMMON(h, x) \
:: d_step { qs[Q(h, x)] == 2 && alive(h) -> hear(h, x) } \
:: d_step { qs[Q(h, x)] == 2 && !alive(h) -> idle(Q(h, x)) } \
:: d_step { qs[Q(h, x)] == 1 -> /* answered */ \
	serve(h, x, qo[Q(h, x)], qe[Q(h, x)], qt[Q(h, x)], qc[Q(h, x)]); \
	printf("%c serves H%d op %d: result %d, now epoch %d committed %d\n", 65 + x, h, qo[Q(h, \
		x)], res, ep[x], ce[x]); \
	if \
	:: WANTED(h, x) -> qs[Q(h, x)] = 2; qe[Q(h, x)] = val; qt[Q(h, x)] = res; qc[Q(h, x)] = 0; \
		if \
		:: res == OK && st[x] == LIVE -> bd[x] = bd[x] | (1 << h) \
		:: else \
		fi; \
		if \
		:: res == OK && AT_ONCE(h, x) -> hear(h, x) \
		:: else \
		fi \
	:: else -> idle(Q(h, x)) \
	fi } \
:: d_step { qs[Q(h, x)] == 1 && (br < BREAKS) && alive(h) -> /* took effect, answer lost */ \
	br++; \
	serve(h, x, qo[Q(h, x)], qe[Q(h, x)], qt[Q(h, x)], qc[Q(h, x)]); \
	printf("%c serves H%d op %d: result %d, now epoch %d committed %d; the answer is lost\n", \
		65 + x, h, qo[Q(h, x)], res, ep[x], ce[x]); \
	bd[x] = bd[x] & ~(1 << h); idle(Q(h, x)) } \
:: d_step { qs[Q(h, x)] == 1 && (br < BREAKS || !WANTED(h, x)) -> /* lost */ \
	if \
	:: WANTED(h, x) -> br++ \
	:: else \
	fi; \
	printf("H%d's request to %c is lost\n", h, 65 + x); \
	bd[x] = bd[x] & ~(1 << h); idle(Q(h, x)) } \
:: d_step { qs[Q(h, x)] == 1 && br < BREAKS && alive(h) && zo[LATE - 1] == 0 -> /* late */ \
	br++; \
	i = 0; \
	do \
	:: zo[i] != 0 -> i++ \
	:: else -> break \
	od; \
	zo[i] = qo[Q(h, x)]; zx[i] = x; ze[i] = qe[Q(h, x)]; zt[i] = qt[Q(h, x)]; zc[i] = qc[Q(h, \
		x)]; zh[i] = h; \
	printf("H%d's request to %c will be late\n", h, 65 + x); \
	bd[x] = bd[x] & ~(1 << h); idle(Q(h, x)) } \
:: d_step { (bd[x] & (1 << h)) && qs[Q(h, x)] == 0 && br < BREAKS && st[x] == LIVE && \
	ce[x] == 0 -> \
	/* an idle connection breaks: matters to the orphan timer only */ \
	br++; bd[x] = bd[x] & ~(1 << h); printf("H%d's connection to %c breaks\n", h, 65 + x) }

#define S_SOURCE(h, x) \
S_ASKONCE(h, x) \
S_READIN(h, x) \
S_FENCED(h, x)

/* A device's state is saved after the end of remote-memory, and may need a page. */
#ifdef READIN
#define S_READIN(h, x) \
:: d_step { alive(h) && ph[h] == END1 && !(lc[h] & MASK(x)) && (readable(h, x) || \
	(st[x] == LIVE && cl[x] && my[Q(h, x)] + 1 == ep[x])) -> \
	I2(readable(h, x)); /* I2: a device's page cannot be read, though nothing has failed */ \
	lc[h] = lc[h] | MASK(x); lv[Q(h, x)] = pcon[x]; \
	printf("H%d, stopped, pages %d in\n", h, x) }
#else
#define S_READIN(h, x)
#endif

#ifdef M_ASKONCE
#define S_ASKONCE(h, x) \
:: d_step { x == A && ACTIVE(h, x) && ph[h] == ASK && (okx[h] & 4) -> ph[h] = DOUBT; \
	printf("H%d was not answered, and is in doubt for good\n", h) }
#else
#define S_ASKONCE(h, x)
#endif

/* The owner finds that somebody has raised the epoch. */
#if defined(M_RECLAIM_LOOSE) || defined(M_NOWITHDRAW)
#define S_FENCED(h, x) \
:: d_step { ACTIVE(h, x) && rn[h] && (ph[h] == RUN) && st[x] == LIVE && my[Q(h, x)] && \
	(my[Q(h, x)] != ep[x]) -> \
	okx[h] = ALL & ~MASK(x); ph[h] = TAKE; printf("H%d is fenced on %c\n", h, 65 + x); \
	if \
	:: kk[h] == 0 -> kk[h] = nk \
	:: else \
	fi }
#else
#define S_FENCED(h, x)
#endif

/* ---- paging -------------------------------------------------------------- */

#ifdef PAGING
/* The owner may use server x for paging. */
#define PAGES(h, x) (rn[h] && my[Q(h, x)] && (ph[h] == RUN || ph[h] == READY || \
	(ph[h] == OWN && (okx[h] & MASK(x))) || (ph[h] == TAKE && (okx[h] & MASK(x)))) && \
		!(h == 0 && fs))
#define WRITES(h) (rn[h] && ph[h] != MERGING)

#define S_PAGING(h, x) \
:: d_step { PAGES(h, x) && !(lc[h] & MASK(x)) && readable(h, x) && qs[Q(h, x)] == 0 -> \
	lc[h] = lc[h] | MASK(x); lv[Q(h, x)] = pcon[x]; printf("H%d pages %d in\n", h, x) } \
:: d_step { WRITES(h) && (lc[h] & MASK(x)) && nw < W && qo[Q(h, x)] != PUT -> \
	nw++; tr[x] = tr[x] + 1; lv[Q(h, x)] = tr[x]; printf("H%d: the guest writes page %d\n", h, x) } \
:: d_step { PAGES(h, x) && (lc[h] & MASK(x)) && np < P && qs[Q(h, x)] == 0 -> \
	np++; cnt[h] = cnt[h] + 1; ask(h, x, PUT, my[Q(h, x)], cnt[h], lv[Q(h, x)]) } \
:: d_step { PAGES(h, x) && (lc[h] & MASK(x)) && nd < D && qs[Q(h, x)] == 0 -> \
	nd++; ask(h, x, DISC, my[Q(h, x)], cnt[h], 0) } \
S_PAGING_FIRST(h, x) \
S_PAGING_MUT(h, x)

#define S_PAGING_FIRST(h, x) \
:: d_step { h == 0 && fs && rn[h] && ph[h] == READY && ak[x] != lv[Q(h, x)] + 1 && qs[Q(h, \
	x)] == 0 -> \
	cnt[h] = cnt[h] + 1; ask(h, x, PUT, my[Q(h, x)], cnt[h], lv[Q(h, x)]) }

#if defined(M_WRITE_CLAIMED) || defined(M_WRITE_EAGER)
/* Short of memory while it loads. */
#define S_PAGING_MUT(h, x) \
:: d_step { ph[h] == CLAIMING && (okx[h] & MASK(x)) && qs[Q(h, x)] == 0 && nd < D && \
	!(lc[h] & MASK(x)) -> \
	nd++; lc[h] = lc[h] | MASK(x); lv[Q(h, x)] = pcon[x]; ask(h, x, DISC, my[Q(h, x)], 99, 0) } \
:: d_step { ph[h] == CLAIMING && (okx[h] & MASK(x)) && qs[Q(h, x)] == 0 && np < P && \
	(lc[h] & MASK(x)) && pver[x] -> \
	np++; cnt[h] = cnt[h] + 2; ask(h, x, PUT, my[Q(h, x)], cnt[h], lv[Q(h, x)]) }
#else
#ifdef M_DISC_NOTHELD
#define S_PAGING_MUT(h, x) \
:: d_step { ph[h] == END1 && (lc[h] & MASK(x)) && !(smap[kk[h] - 1] & MASK(x)) && qs[Q(h, \
	x)] == 0 && nd < D -> \
	nd++; ask(h, x, DISC, my[Q(h, x)], cnt[h], 0) }
#else
#define S_PAGING_MUT(h, x)
#endif
#endif

#ifdef M_PUT_NOTAWAITED
#define STILL(h) (qo[Q(h, 0)] != DISC && qo[Q(h, 1)] != DISC)
#define LEAVING(h) ((qo[Q(h, 0)] == PUT -> 1 : 0) | (qo[Q(h, 1)] == PUT -> 2 : 0))
#else
#define STILL(h) QUIET(h)
#define LEAVING(h) 0
#endif
#define FLUSHED(h) (!(h == 0 && fs) || (ak[0] == lv[Q(h, 0)] + 1 && ak[1] == lv[Q(h, 1)] + 1))
#else
#define S_PAGING(h, x)
#define STILL(h) QUIET(h)
#define LEAVING(h) 0
#define FLUSHED(h) 1
#endif

/* ---- steps of host h ----------------------------------------------------- */

#ifdef M_NOWITHDRAW
#define WITHDRAW(h) \
	if \
	:: h == 0 && fs -> ph[h] = TAKE \
	:: else -> ph[h] = RUN; kk[h] = 0 \
	fi
#else
#define WITHDRAW(h) ph[h] = TAKE
#endif

#ifdef CONT
#define TOLD(h) ph[h] = POST
#else
#define TOLD(h) ph[h] = DONE; unbind(h); forget(h)
#endif

#ifdef M_NOASK
#define BROKEN(h) okx[h] = 0; resume(h)
#else
#define BROKEN(h) okx[h] = 0; ph[h] = ASK
#endif

#ifdef M_CONT_NOASK
#define CONTS(h) okx[h] = 0; resume(h)
#else
#define CONTS(h) okx[h] = 0; ph[h] = ASK
#endif

#define H_SOURCE(h) \
:: d_step { ph[h] == RUN && rn[h] && nk < NATT && nk >= h && QUIET(h) && (my[Q(h, \
	0)] == ep[0] || NEW(h, 0)) && (my[Q(h, 1)] == ep[1] || NEW(h, 1)) -> \
	src[nk] = h; nk++; kk[h] = nk; okx[h] = 0; ph[h] = OFFERING; \
		printf("attempt %d: H%d to H%d\n", nk, h, nk) } \
:: d_step { (ph[h] == OFFERING || ph[h] == READY) -> \
	sb[kk[h] - 1] = 1; okx[h] = 0; WITHDRAW(h); printf("H%d cancels\n", h) } \
:: d_step { ph[h] == READY && !sb[kk[h] - 1] && STILL(h) && FLUSHED(h) -> \
	rn[h] = 0; ph[h] = END1; snt[kk[h] - 1] = 1; \
	smap[kk[h] - 1] = lc[h] & ~LEAVING(h) & ~((NEW(h, 0) -> 1 : 0) | (NEW(h, 1) -> 2 : 0)); \
	printf("H%d stops the VM and sends the end of remote-memory\n", h) } \
:: d_step { ph[h] == READY && sb[kk[h] - 1] -> okx[h] = 0; WITHDRAW(h) } \
:: d_step { ph[h] == END1 && !sb[kk[h] - 1] && QUIET(h) -> ph[h] = END2; snt[kk[h] - 1] = 2; \
	printf("H%d sends device state\n", h) } \
:: d_step { (ph[h] == END1 || ph[h] == END2) && !sb[kk[h] - 1] -> \
	/* cancelled, or the stream breaks */ \
	sb[kk[h] - 1] = 1; printf("H%d's stream breaks, or it cancels\n", h) } \
:: d_step { (ph[h] == END1 || ph[h] == END2) && sb[kk[h] - 1] -> BROKEN(h) } \
:: d_step { (ph[h] == END1 || ph[h] == END2) && !sb[kk[h] - 1] && rp[kk[h] - 1] == 1 -> \
	TOLD(h); printf("H%d hears success\n", h) } \
:: d_step { (ph[h] == END1 || ph[h] == END2) && !sb[kk[h] - 1] && rp[kk[h] - 1] == 2 -> \
	okx[h] = 0; resume(h) } \
:: d_step { ph[h] == POST -> printf("cont on H%d\n", h); CONTS(h) } \
H_MERGE(h)

#ifdef MERGE
#define H_MERGE(h) \
:: d_step { ph[h] == RUN && rn[h] && !(h == 0 && fs) && nk == NATT && QUIET(h) && \
	readable(h, 0) && readable(h, 1) -> \
	if \
	:: !(lc[h] & 1) -> lv[Q(h, 0)] = pcon[0] \
	:: else \
	fi; \
	if \
	:: !(lc[h] & 2) -> lv[Q(h, 1)] = pcon[1] \
	:: else \
	fi; \
	lc[h] = ALL; okx[h] = 0; ph[h] = MERGING; printf("H%d merges\n", h) }
#else
#define H_MERGE(h)
#endif

#ifdef M_GIVEUP
#define MAY_GIVE_UP(h) (ph[h] == CLAIMING || ph[h] == LOADED || ph[h] == COMMITTING)
#else
#define MAY_GIVE_UP(h) (ph[h] == CLAIMING || ph[h] == LOADED || (ph[h] == COMMITTING && !cs[h]))
#endif

#ifdef M_VER_RESET
#define COUNTER(h) 0
#elif defined(VERSION_BY_EPOCH)	/* versions begin with the epoch instead */
#define MAXEP(h) (my[Q(h, 0)] > my[Q(h, 1)] -> my[Q(h, 0)] : my[Q(h, 1)])
#define COUNTER(h) ((MAXEP(h) + 1) * 8)
#else
#define COUNTER(h) cnt[src[h - 1]]
#endif

#ifdef M_COMMIT_AT_LOAD
#define H_CONT(h) rn[h] = 1; ph[h] = OWN; okx[h] = 1
#else
#define H_CONT(h) ph[h] = COMMITTING
#endif

#define H_DEST(h) \
:: d_step { ph[h] == IDLE && nk >= h && !sb[h - 1] && snt[h - 1] >= 1 -> \
	got[h - 1] = 1; ph[h] = CLAIMING; okx[h] = 0; \
	my[Q(h, 0)] = my[Q(src[h - 1], 0)]; my[Q(h, 1)] = my[Q(src[h - 1], 1)]; \
	lc[h] = smap[h - 1]; cnt[h] = COUNTER(h); \
	lv[Q(h, 0)] = ((lc[h] & 1) -> lv[Q(src[h - 1], 0)] : 0); \
	lv[Q(h, 1)] = ((lc[h] & 2) -> lv[Q(src[h - 1], 1)] : 0); \
	printf("H%d has the end of remote-memory\n", h) } \
:: d_step { ph[h] == CLAIMING && got[h - 1] == 1 && snt[h - 1] == 2 && !sb[h - 1] -> \
	got[h - 1] = 2; printf("H%d has the device state\n", h) } \
:: d_step { ((ph[h] == CLAIMING && got[h - 1] < 2) || (ph[h] == IDLE && nk >= h)) && \
	sb[h - 1] -> give_up(h) } \
:: d_step { ph[h] == LOADED -> H_CONT(h); printf("cont on H%d\n", h) } \
:: d_step { MAY_GIVE_UP(h) -> gGu[h - 1] = 1; rn[h] = 0; give_up(h) } 

#define H_CRASH(h) \
:: d_step { alive(h) && cr < CRASH && ph[h] != DEAD && ph[h] != DONE && ph[h] != ALONE && \
	!(ph[h] == IDLE && nk < h) -> \
	cr++; unbind(h); rn[h] = 0; \
	if \
	:: kk[h] -> sb[kk[h] - 1] = 1 \
	:: else \
	fi; \
	if \
	:: h > 0 -> sb[(h > 0 -> h - 1 : 0)] = 1 \
	:: else \
	fi; \
	ph[h] = CRASHED; okx[h] = 0; forget(h); \
	printf("H%d crashes\n", h) }

/* ---- servers ------------------------------------------------------------- */

#ifdef M_ORPHAN
#define ORPHAN(x) (1)
#else
/* The arbiter alone lets a session die of age.  Another server does so only
 * before the session was claimed, or when the arbiter has its tombstone. */
#ifdef M_NOGC
#define ORPHAN(x) (x == A || !cl[x])
#else
#define ORPHAN(x) (x == A || !cl[x] || (st[A] == TOMB && ce[A] == 0))
#endif
#endif

#ifdef LOSE	/* no late request survives it either: its connection is gone */
#define LOSES(x) \
	if \
	:: zo[0] && zx[0] == x && LATE == 1 -> zo[0] = 0; zx[0] = 0; ze[0] = 0; zt[0] = 0; \
		zc[0] = 0; zh[0] = 0 \
	:: else \
	fi; \
	st[x] = NONE; ep[x] = 0; ce[x] = 0; tk[x] = 0; cl[x] = 0; pver[x] = 0; pcon[x] = 0;
#else
#ifdef M_FORGETS_EPOCH
#define LOSES(x) \
	if \
	:: st[x] == LIVE -> ep[x] = (ce[x] > 1 -> ce[x] : 1); cl[x] = 0 \
	:: else \
	fi;
#else
#ifdef M_FORGETS_TICKET
#define LOSES(x) tk[x] = 0;
#else
#ifdef M_FORGETS_CLAIMED
#define LOSES(x) cl[x] = 0;
#else
#ifdef M_FORGETS_TOMB
#define LOSES(x) \
	if \
	:: st[x] == TOMB -> st[x] = NONE; ce[x] = 0 \
	:: else \
	fi;
#else
#define LOSES(x)
#endif
#endif
#endif
#endif
#endif

#define S_DROPSLOT(h, x) \
	if \
	:: qs[Q(h, x)] == 1 -> idle(Q(h, x)) \
	:: else \
	fi;

#if NATT == 1
#define S_DROPSLOTS(x) S_DROPSLOT(0, x) S_DROPSLOT(1, x)
#else
#define S_DROPSLOTS(x) S_DROPSLOT(0, x) S_DROPSLOT(1, x) S_DROPSLOT(2, x)
#endif

#define SERVER(x) \
:: d_step { st[x] == LIVE && ce[x] == 0 && bd[x] == 0 && ORPHAN(x) -> \
	if \
	:: nk > 0 && ph[nk] != DEAD -> gOr = 1 \
	:: else \
	fi; \
	end_session(x); printf("%c lets the session die of age\n", 65 + x) } \
:: d_step { rs < RESTART && nk > 0 -> \
	rs++; bd[x] = 0; S_DROPSLOTS(x) LOSES(x) printf("%c restarts\n", 65 + x) }

#define LATE_STEP(n) \
:: d_step { zo[n] != 0 -> \
	res = zx[n]; \
	if \
	:: res == A -> serve(zh[n], A, zo[n], ze[n], zt[n], zc[n]) \
	:: else -> serve(zh[n], B, zo[n], ze[n], zt[n], zc[n]) \
	fi; \
	printf("%c serves H%d's late op %d: result %d, now epoch %d committed %d\n", 65 + zx[n], \
		zh[n], zo[n], res, ep[zx[n]], ce[zx[n]]); \
	i = n; \
	do \
	:: i + 1 < LATE -> zo[i] = zo[i + 1]; zx[i] = zx[i + 1]; ze[i] = ze[i + 1]; \
		zt[i] = zt[i + 1]; zc[i] = zc[i + 1]; zh[i] = zh[i + 1]; i++ \
	:: else -> break \
	od; \
	zo[LATE - 1] = 0; zx[LATE - 1] = 0; ze[LATE - 1] = 0; zt[LATE - 1] = 0; zc[LATE - 1] = 0; \
		zh[LATE - 1] = 0 }

/* ---- all together -------------------------------------------------------- */

#define PAIRS(h) \
	S_COMMON(h, 0) S_COMMON(h, 1) \
	S_SOURCE(h, 0) S_SOURCE(h, 1) \
	S_PAGING(h, 0) S_PAGING(h, 1)

#define DESTS(h) \
	H_DEST(h)

#define runs (rn[0] || rn[1] || rn[NH - 1])
/* The running side can go on with server x. */
#define in_step(h, x) (!rn[h] || ph[h] == ALONE || NEW(h, x) || writable(h, x))
/* The owner died, and nobody was in a position to go on. */
#define could(k) (alive(k + 1) && got[k] == 2 && !gGu[k] && !gRe[k] && !gOr)
#define excused (!alive(own) && !(nk > 0 && src[(nk > 0 -> nk - 1 : 0)] == own && \
	could((nk > 0 -> nk - 1 : 0))))

inline terminal()
{
	printf("the end: own %d, phases %d %d\n", own, ph[0], ph[1]);
	/* I3: somebody runs the VM */
	assert(runs || excused);
	/* ... and can go on */
	assert(in_step(0, A) && in_step(0, B));
	assert(in_step(1, A) && in_step(1, B));
#if NATT > 1
	assert(in_step(2, A) && in_step(2, B));
#endif
#ifdef MIX
	assert(own != 0 || !alive(0) || st[MIX] != LIVE);
#endif
#ifdef FIRST
	/* I4: what nobody ever committed leaves nothing behind */
	assert(ce[A] != 0 || (st[A] != LIVE && st[B] != LIVE))
#endif
}

active proctype system_()
{
	d_step {
		ph[0] = RUN; rn[0] = 1;
		i = 1;
		do
		:: i < NH -> ph[i] = IDLE; i++
		:: else -> break
		od;
		i = 0;
#ifdef FIRST
		fs = 1; lc[0] = ALL;
#elif defined(MIX)
		st[1 - MIX] = LIVE; ep[1 - MIX] = 2; ce[1 - MIX] = 2; pver[1 - MIX] = 1;
		my[Q(0, (1 - MIX))] = 2; lc[0] = 1 << MIX; cnt[0] = 1;
#else
		st[A] = LIVE; ep[A] = 2; ce[A] = 2; pver[A] = 1;
		st[B] = LIVE; ep[B] = 2; ce[B] = 2; pver[B] = 1;
		my[Q(0, A)] = 2; my[Q(0, B)] = 2;
#ifdef VERSION_BY_EPOCH
		cnt[0] = 16; pver[A] = 16; pver[B] = 16;
#else
		cnt[0] = 1;
#endif
#endif
		check()
	}
	do
	:: atomic {
	if
	PAIRS(0)
	PAIRS(1)
	DESTS(1)
	H_SOURCE(0)
	H_SOURCE(1)
	H_CRASH(0)
	H_CRASH(1)
#if NATT > 1
	PAIRS(2)
	DESTS(2)
	H_SOURCE(2)
	H_CRASH(2)
#endif
	SERVER(A)
	SERVER(B)
	LATE_STEP(0)
#if LATE > 1
	LATE_STEP(1)
#endif
	:: else ->
#if !defined(LOSE) && !defined(NO_I3)
		d_step { terminal() }
#endif
		break
	fi;
	d_step { check() }
	}
	od
}
