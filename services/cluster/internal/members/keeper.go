package members

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/planner"
	"podwire.dev/services/cluster/internal/silence"
)

// Where members' Pods are, and by what they are known.
const (
	Namespace  = planner.MemberNamespace
	Annotation = planner.AnnotationMember
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// World is asked inside of Asker.Do; *planner.Planner is one.
type World interface {
	// MembersPods are the Pods of Namespace, by name; nil while the Namespace is not there.
	MembersPods() map[string]store.Record
	// Leases says whether a member holds an address.
	Leases(member string, addr netip.Addr) bool
}

// Leader knows whether this replica writes; *feed.Leader is one.
type Leader interface{ Leadership() *store.Leadership }

// Config is what a Keeper is made of.
type Config struct {
	Store  *store.Store
	Asker  Asker
	World  World
	Leader Leader
	Log    *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Keeper hears members and writes their Pods. Enter and End may be called from anywhere; Run and Record each belong to one
// goroutine.
type Keeper struct {
	Config
	ledger *ledger
	news   chan struct{}
	epoch  store.Revision // of Record's goroutine

	mu sync.Mutex
	// written is at which revision the World has a member's Pod as attended; refused is why a member gets none.
	written map[string]store.Revision
	refused map[string]error
}

// NewKeeper makes a Keeper; it starts nothing.
func NewKeeper(cfg Config) *Keeper {
	return &Keeper{
		Config: cfg, ledger: newLedger(), news: make(chan struct{}, 1),
		written: map[string]store.Revision{}, refused: map[string]error{},
	}
}

// Open begins a stream.
func (k *Keeper) Open() Stream { return k.ledger.open() }

// Enter notes a sign of life. elected false: this replica does not lead, and the member has to turn to the one that does.
// at is the revision at which the member's Pod says what the member said last, 0 while it does not. Exists where the name
// is that of a Pod of another origin, Exhausted where the service has too many members.
func (k *Keeper) Enter(a Attendance, s Stream) (elected bool, at store.Revision, err error) {
	if k.Leader.Leadership() == nil {
		return false, 0, nil
	}
	if k.ledger.full(a) {
		return true, 0, errs.New(errs.Exhausted, "member %s: %d replicas of %s attend or were heard within %s, which is the most that may",
			a.Name, MaxOfService, a.Service, GoneAfter)
	}
	if k.ledger.enter(a, s, k.Now()) {
		select {
		case k.news <- struct{}{}:
		default:
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return true, k.written[a.Name], k.refused[a.Name]
}

// End notes that a stream of a member ended, for another reason than that this server stops.
func (k *Keeper) End(name string, s Stream) { k.ledger.end(name, s, k.Now()) }

// Watch ticks until ctx ends. It does nothing else, so that a late tick means a starved process, and no slow write.
func (k *Keeper) Watch(ctx context.Context) error {
	return silence.EveryTick(ctx, nil, func() {
		if k.ledger.tick(k.Now()) {
			k.Log.Warn("this process stood still: every fabric member gets a fresh period before it is judged")
		}
	})
}

// Run records who attends until ctx ends: news at once.
func (k *Keeper) Run(ctx context.Context) error {
	return silence.EveryTick(ctx, k.news, func() {
		if err := k.Record(ctx); err != nil && ctx.Err() == nil {
			k.Log.Warn("fabric members are not recorded, trying again", "error", err)
		}
	})
}

// Record writes the Pods that differ from what is known of the members now. A Pod that changed meanwhile is left for the
// next time.
func (k *Keeper) Record(ctx context.Context) error {
	lead := k.Leader.Leadership()
	if lead == nil {
		k.epoch = 0
		return nil
	}
	if lead.Epoch != k.epoch {
		k.epoch = lead.Epoch
		k.ledger.restart(k.Now())
	}
	var pods map[string]store.Record
	if err := k.Asker.Do(ctx, func(store.Revision) { pods = k.World.MembersPods() }); err != nil {
		return err
	}
	if pods == nil {
		return nil
	}
	var names []string
	for name, rec := range pods {
		if isMember(rec) {
			names = append(names, name)
		}
	}
	now := k.Now()
	judged := k.ledger.judge(names, now)
	leased := map[string][]netip.Addr{}
	if err := k.Asker.Do(ctx, func(store.Revision) {
		for name, j := range judged {
			if j.state == attending {
				leased[name] = k.leasedOf(*j.last)
			}
		}
	}); err != nil {
		return err
	}
	for _, name := range succeeded(judged, pods) {
		judged[name] = judgement{state: replaced}
	}
	var failed error
	for name, j := range judged {
		rec, exists := pods[name]
		t := turn{lead: lead, name: name, rec: rec, exists: exists, now: now}
		var err error
		switch j.state {
		case attending:
			err = k.attended(ctx, t, *j.last, leased[name])
		case silent:
			err = k.fellSilent(ctx, t)
		case replaced, gone:
			err = k.remove(ctx, t, j.state)
		case unjudged:
		}
		if err != nil && !errs.Is(err, errs.Conflict) && failed == nil { // a Conflict: it changed, or the election did
			failed = errs.Wrap(err, "members: %s", name)
		}
	}
	return failed
}

// succeeded names the silent members whose underlay address another one has now. In a container that is made anew a
// replica gets another name and often the address of its predecessor, which so cannot come back, and whose leases and rows
// would be in its way.
func succeeded(judged map[string]judgement, pods map[string]store.Record) []string {
	holders := map[string]bool{}
	for _, j := range judged {
		if j.state == attending {
			for _, a := range j.last.Underlay {
				holders[a.String()] = true
			}
		}
	}
	var names []string
	for name, j := range judged {
		pod, ok := pods[name].Object.(*objectv1.Pod)
		if !ok || j.state != silent {
			continue
		}
		if slices.ContainsFunc(pod.GetStatus().GetHostIps(), func(h *objectv1.HostIP) bool { return holders[h.GetIp()] }) {
			names = append(names, name)
		}
	}
	return names
}

// turn is one member's in one Record.
type turn struct {
	lead   *store.Leadership
	name   string
	rec    store.Record
	exists bool
	now    time.Time
}

func isMember(rec store.Record) bool {
	return rec.Object.GetMetadata().GetAnnotations()[Annotation] != ""
}

func (k *Keeper) leasedOf(a Attendance) []netip.Addr {
	var out []netip.Addr
	for _, addr := range a.Addresses {
		if k.World.Leases(a.Name, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// attended makes the Pod say what its member says.
func (k *Keeper) attended(ctx context.Context, t turn, a Attendance, leased []netip.Addr) error {
	var have *objectv1.Pod
	if t.exists {
		if have, _ = t.rec.Object.(*objectv1.Pod); !isMember(t.rec) {
			k.note(t.name, 0, errs.New(errs.Exists,
				"Pod %s/%s exists and is not this member's: delete it, or give the member another name", Namespace, t.name))
			return nil
		}
	}
	want := podOf(have, a, leased, t.now)
	if have != nil && proto.Equal(have, want) {
		k.note(t.name, t.rec.Revision, nil)
		return nil
	}
	txn := k.Store.Txn().RequireLeader(t.lead)
	if have == nil {
		txn.Create(want, planner.KindPod)
	} else {
		txn.Update(t.rec, want)
	}
	k.note(t.name, 0, nil)
	if _, err := txn.Commit(ctx); err != nil {
		return err
	}
	if before, after := readyStatus(have), readyStatus(want); before != after {
		k.Log.Info("fabric member changed", "member", t.name, "ready", after, "reason", want.GetStatus().GetConditions()[0].GetMessage())
	}
	return nil
}

// fellSilent takes the Pod of a member that is not heard out of its endpoints.
func (k *Keeper) fellSilent(ctx context.Context, t turn) error {
	k.note(t.name, 0, nil)
	have, ok := t.rec.Object.(*objectv1.Pod)
	if !ok || !isMember(t.rec) || len(have.GetSpec().GetContainers()) == 0 {
		return nil
	}
	want := silenced(have, t.now)
	if proto.Equal(have, want) {
		return nil
	}
	if _, err := k.Store.Txn().RequireLeader(t.lead).Update(t.rec, want).Commit(ctx); err != nil {
		return err
	}
	k.Log.Warn("fabric member fell silent", "member", t.name)
	return nil
}

// remove deletes the Pod of a member that is gone or replaced.
func (k *Keeper) remove(ctx context.Context, t turn, why state) error {
	if t.exists && isMember(t.rec) {
		if _, err := k.Store.Txn().RequireLeader(t.lead).Delete(t.rec).Commit(ctx); err != nil {
			return err
		}
		if why == replaced {
			k.Log.Info("another fabric member has the underlay address of a silent one, whose Pod is deleted", "member", t.name)
		} else {
			k.Log.Warn("fabric member is gone, its Pod is deleted", "member", t.name)
		}
	}
	k.ledger.forget(t.name, t.now)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.written, t.name)
	delete(k.refused, t.name)
	return nil
}

// note is what Enter answers from now on.
func (k *Keeper) note(name string, at store.Revision, refused error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written[name], k.refused[name] = at, refused
}
