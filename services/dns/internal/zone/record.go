package zone

import "net/netip"

// Type is the type of a record or a question, by its number in IANA's registry.
type Type uint16

// The types of the records here (RFC 1035, RFC 3596, RFC 2782).
const (
	TypeA     Type = 1
	TypeNS    Type = 2
	TypeCNAME Type = 5
	TypeSOA   Type = 6
	TypePTR   Type = 12
	TypeTXT   Type = 16
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
)

// Time to live of what the zone says, in seconds.
const (
	// TTL is that of every record, and what a resolver may remember that a name has none (the SOA's minimum, RFC 2308
	// section 4). A push makes a change true here at once; what remains is what clients remember, and those that cache do
	// so on the same machine as they ask from: asking again costs them little, an old address costs them a connection.
	TTL = 5
	// versionTTL is that of dns-version, which changes with the program.
	versionTTL = 28800
)

// SchemaVersion is the version of the Kubernetes DNS specification that the zone keeps.
const SchemaVersion = "1.1.0"

// Record is one resource record. The fields that its type does not have are zero.
type Record struct {
	// Name is the owner, with a final dot, in the letters of the question.
	Name string
	Type Type
	// TTL in seconds.
	TTL uint32
	// Addr of A and AAAA.
	Addr netip.Addr
	// Target of CNAME, PTR, NS and SRV, with a final dot.
	Target string
	// Priority, Weight and Port of SRV.
	Priority, Weight, Port uint16
	// Text of TXT.
	Text string
	// SOA of SOA.
	SOA *SOA
}

// SOA is the data of a start of authority (RFC 1035 section 3.3.13). Times are seconds.
type SOA struct {
	Server, Mailbox                         string
	Serial, Refresh, Retry, Expire, Minimum uint32
}

// Outcome is what came of a question.
type Outcome uint8

// The outcomes.
const (
	// Outside: the name is not the cluster's; somebody else has to be asked.
	Outside Outcome = iota
	// Found: Records answer the question.
	Found
	// NoData: the name exists and has no record of the type.
	NoData
	// NoName: the name does not exist (NXDOMAIN).
	NoName
	// Leads: Records are aliases that lead to Next, which is outside; its answer completes this one.
	Leads
	// Endless: the aliases lead in a circle, or further than aliases should (SERVFAIL).
	Endless
)

// Question is what is asked.
type Question struct {
	// Name is complete, with a final dot, in the presentation form of RFC 1035 section 5.1.
	Name string
	Type Type
	// Turn chooses which of several addresses comes first, so that a caller who counts it up spreads the load.
	Turn uint32
}

// Answer is what the zone says. A caller that asks often keeps one and has it filled again: its slices keep their memory.
type Answer struct {
	Outcome Outcome
	// Records are the answer section.
	Records []Record
	// Authority is the start of authority of a negative answer.
	Authority []Record
	// Extra are the addresses of the Records' targets.
	Extra []Record
	// Next is where the aliases lead, with a final dot; of Leads only.
	Next   string
	Reason Reason
}

func (a *Answer) reset() {
	a.Outcome, a.Next, a.Reason = Outside, "", Reason{}
	a.Records, a.Authority, a.Extra = a.Records[:0], a.Authority[:0], a.Extra[:0]
}
