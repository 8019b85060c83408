// Package link attaches pods to their node: a routed veth pair per pod, no bridge, no proxy ARP, nothing to be resolved.
//
// In: a pod's identity, its network namespace, its addresses (one per family; chosen by the agent) and the MTU of the
// fabric. Out: the pair, whose host side is named by [Name] and carries the pod's identity in its alias, and whose other
// side is eth0 in the pod, with /32 and /128 addresses, a default route through 169.254.1.1 and fe80::1, and permanent
// neighbour entries on both sides, so that the first packet needs no answer to a question.
//
// Invariants: both families take one path through the code. Attach repairs what differs and writes nothing where nothing
// does; it never touches an eth0 that is not the other end of our own link. Live links are the witness of the addresses in
// use: List reads them back from the kernel, and needs no file. The static gate of our nftables table drops whatever a pwp*
// link carries until the pod's elements are committed; so the caller commits those first, and only then calls Attach.
//
// This package is the only writer of pod links, of their neighbours and of the routes on them. It chooses no address and
// knows nothing of rules.
package link

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
)

// Prefix starts the name of the host side of every pod's link; nothing else on a node begins with it.
const Prefix = "pwp"

// Interface is the name of the link inside the pod.
const Interface = "eth0"

// Pod is what a pod's link is made from.
type Pod struct {
	UID, Namespace, Name string
	// NetNS is a path that opens the pod's network namespace.
	NetNS string
	// Addresses has one address, or one of each family.
	Addresses []netip.Addr
	// MTU of both ends, in bytes.
	MTU int
}

// Attachment is a live link of a pod.
type Attachment struct {
	// Link is the name of the host side, and Index its index.
	Link  string
	Index int
	// UID, Namespace and Name are the pod's, as the link's alias says them; a very long name may be cut short.
	UID, Namespace, Name string
	// Addresses are the addresses routed to the link, sorted.
	Addresses []netip.Addr
}

// Links is the door to the pod links of one node. Its methods are called on threads of the namespace that it was opened in;
// they may be called at the same time.
type Links struct {
	conn *rtnl.Conn
	// inPods counts the writes made through other sockets than conn.
	inPods atomic.Uint64
	// pods serialises what is done to one pod.
	mu   sync.Mutex
	pods map[string]*podLock
}

type podLock struct {
	sync.Mutex
	users int
}

// Open opens the door in the network namespace of the calling thread.
func Open() (*Links, error) {
	conn, err := rtnl.Open()
	if err != nil {
		return nil, errs.Wrap(err, "pod links")
	}
	return &Links{conn: conn, pods: map[string]*podLock{}}, nil
}

// Close frees the descriptors; links stay.
func (l *Links) Close() { l.conn.Close() }

// Writes is the number of changes made in the kernel since Open.
func (l *Links) Writes() uint64 { return l.conn.Writes() + l.inPods.Load() }

func (l *Links) lock(uid string) (unlock func()) {
	l.mu.Lock()
	p, ok := l.pods[uid]
	if !ok {
		p = &podLock{}
		l.pods[uid] = p
	}
	p.users++
	l.mu.Unlock()
	p.Lock()
	return func() {
		p.Unlock()
		l.mu.Lock()
		if p.users--; p.users == 0 {
			delete(l.pods, uid)
		}
		l.mu.Unlock()
	}
}

// Name is the name of the host side of a pod's link: "pwp" and the first 12 hexadecimal digits of the UID's SHA-256, which
// is as long as a link's name may be.
func Name(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return Prefix + hex.EncodeToString(sum[:6])
}

const (
	aliasPrefix = "podwire:pod:"
	aliasMax    = 255 // IFALIASZ-1 of linux/if.h
	uidMax      = 128
)

// aliasOf is the alias of a pod's link: podwire:pod:<uid>:<namespace>/<name>. The UID comes first, so that what does not fit
// is the end of the name.
func aliasOf(p Pod) string {
	alias := aliasPrefix + p.UID + ":" + p.Namespace + "/" + p.Name
	return alias[:min(len(alias), aliasMax)]
}

// parseAlias is the inverse of aliasOf; ok says whether the alias is one of ours.
func parseAlias(alias string) (a Attachment, ok bool) {
	rest, ours := strings.CutPrefix(alias, aliasPrefix)
	uid, name, whole := strings.Cut(rest, ":")
	if !ours || !whole || uid == "" {
		return Attachment{}, false
	}
	a.UID = uid
	a.Namespace, a.Name, _ = strings.Cut(name, "/")
	return a, true
}

func (p Pod) validate() error {
	var bad []errs.Violation
	if p.UID == "" || len(p.UID) > uidMax || strings.Contains(p.UID, ":") {
		bad = append(bad, errs.Violation{Field: "uid", Value: p.UID, Rule: "must have 1 to 128 bytes without a colon"})
	}
	if p.NetNS == "" {
		bad = append(bad, errs.Violation{Field: "netns", Rule: "must be the path of a network namespace"})
	}
	families := map[bool]bool{}
	for _, a := range p.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || families[a.Is4()] {
			bad = append(bad, errs.Violation{Field: "addresses", Value: a.String(), Rule: "must be one address of each family at most"})
		}
		families[a.Is4()] = true
	}
	if len(p.Addresses) == 0 {
		bad = append(bad, errs.Violation{Field: "addresses", Rule: "must have at least one address"})
	}
	if p.MTU < 1280 || p.MTU > 65535 {
		bad = append(bad, errs.Violation{Field: "mtu", Rule: "must be between 1280 (RFC 8200 section 5) and 65535"})
	}
	return errs.InvalidFields("link of Pod "+p.Namespace+"/"+p.Name, bad)
}

// List returns the live attachments, sorted by link name.
func (l *Links) List() ([]Attachment, error) {
	links, err := l.conn.Links()
	if err != nil {
		return nil, errs.Wrap(err, "pod links")
	}
	routes, err := l.conn.Routes(0)
	if err != nil {
		return nil, errs.Wrap(err, "pod links: routes")
	}
	addresses := map[int][]netip.Addr{}
	for _, r := range routes {
		if r.Dst.IsSingleIP() {
			addresses[r.Index] = append(addresses[r.Index], r.Dst.Addr())
		}
	}
	var live []Attachment
	for _, k := range links {
		a, ok := parseAlias(k.Alias)
		if !ok || !strings.HasPrefix(k.Name, Prefix) {
			continue
		}
		a.Link, a.Index, a.Addresses = k.Name, k.Index, addresses[k.Index]
		sort.Slice(a.Addresses, func(i, j int) bool { return a.Addresses[i].Less(a.Addresses[j]) })
		live = append(live, a)
	}
	sort.Slice(live, func(i, j int) bool { return live[i].Link < live[j].Link })
	return live, nil
}

// Detach removes a pod's link, both sides, with all that is on it. No link is no error; a link of that name that is not
// this pod's is Exists.
func (l *Links) Detach(uid string) error {
	defer l.lock(uid)()
	k, found, err := l.conn.LinkByName(Name(uid))
	if err != nil || !found {
		return errs.Wrap(err, "detach pod %s", uid)
	}
	if a, ok := parseAlias(k.Alias); !ok || a.UID != uid {
		return notOurs(k, uid)
	}
	return errs.Wrap(l.conn.Do(rtnl.DeleteLink(k.Index)), "detach pod %s", uid)
}

func notOurs(k rtnl.Link, uid string) error {
	return errs.New(errs.Exists, "link %s (kind %q, alias %q) stands where the link of pod %s belongs; remove it",
		k.Name, k.Kind, k.Alias, uid)
}
