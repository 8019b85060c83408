package admission

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Limits of the DNS configuration of a Pod ("DNS for Services and Pods").
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// maxHostname is what Linux allows for the name of a host, in bytes.
const maxHostname = 64

// Rules are the rules of Pods that depend on the cluster.
type Rules struct {
	// ClusterDomain is the suffix of the names of Services and Pods.
	ClusterDomain string
}

// ValidatePod returns the rules of core/v1 that a Pod breaks, and on an update the fields that may not change.
func (r Rules) ValidatePod(o, old *objectv1.Pod) []errs.Violation {
	var v violations
	spec := o.GetSpec()
	v.containers(spec)
	v.oneOf("spec.restartPolicy", spec.GetRestartPolicy(), "Always", "OnFailure", "Never")
	v.oneOf("spec.dnsPolicy", spec.GetDnsPolicy(), "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
	if spec.TerminationGracePeriodSeconds != nil {
		v.atLeast("spec.terminationGracePeriodSeconds", spec.GetTerminationGracePeriodSeconds(), 0)
	}
	if spec.ActiveDeadlineSeconds != nil {
		v.atLeast("spec.activeDeadlineSeconds", spec.GetActiveDeadlineSeconds(), 1)
	}
	v.resources("spec.resources", spec.GetResources())
	v.nodeRules(spec)
	r.ownNames(&v, o)
	v.hostAliases(spec)
	v.dnsConfig(spec)
	v.tolerations(spec.GetTolerations())
	for i, g := range spec.GetReadinessGates() {
		v.qualified(fmt.Sprintf("spec.readinessGates[%d].conditionType", i), g.GetConditionType())
	}
	v.gates(spec)
	if old != nil && len(v) == 0 {
		v.podUpdate(o, old)
	}
	return v
}

// nodeRules are the rules about where the Pod may run.
func (v *violations) nodeRules(spec *objectv1.PodSpec) {
	if name := spec.GetNodeName(); name != "" {
		v.named("spec.nodeName", name, names.DNSSubdomain)
	}
	for _, key := range slices.Sorted(maps.Keys(spec.GetNodeSelector())) {
		v.qualified("spec.nodeSelector", key)
		v.named("spec.nodeSelector["+key+"]", spec.GetNodeSelector()[key], names.LabelValue)
	}
	v.named("spec.schedulerName", spec.GetSchedulerName(), names.DNSSubdomain)
}

// ownNames are the rules about the Pod's own names.
func (r Rules) ownNames(v *violations, o *objectv1.Pod) {
	spec := o.GetSpec()
	if h := spec.GetHostname(); h != "" {
		v.named("spec.hostname", h, names.DNSLabel)
	}
	if s := spec.GetSubdomain(); s != "" {
		v.named("spec.subdomain", s, names.DNSLabel)
	}
	if spec.HostnameOverride != nil {
		switch name := spec.GetHostnameOverride(); {
		case names.DNSSubdomain(name) != "" || len(name) > maxHostname:
			v.add("spec.hostnameOverride", name, "must be a lowercase RFC 1123 subdomain of at most %d characters", maxHostname)
		case spec.GetSetHostnameAsFqdn():
			v.add("spec.hostnameOverride", name, "may not be set together with setHostnameAsFQDN")
		case spec.GetHostNetwork():
			v.add("spec.hostnameOverride", name, "may not be set together with hostNetwork")
		}
	}
	if !spec.GetSetHostnameAsFqdn() || spec.GetSubdomain() == "" {
		return
	}
	host := spec.GetHostname()
	if host == "" {
		host = o.GetMetadata().GetName()
	}
	// Kubernetes accepts such a Pod and leaves it pending for good; its documentation advises to refuse it.
	fqdn := strings.Join([]string{host, spec.GetSubdomain(), o.GetMetadata().GetNamespace(), "svc", r.ClusterDomain}, ".")
	if len(fqdn) > maxHostname {
		v.add("spec.setHostnameAsFQDN", fqdn, "the name would have %d characters, and Linux allows %d for the name of a host", len(fqdn), maxHostname)
	}
}

func (v *violations) hostAliases(spec *objectv1.PodSpec) {
	for i, a := range spec.GetHostAliases() {
		at := fmt.Sprintf("spec.hostAliases[%d]", i)
		v.address(at+".ip", a.GetIp())
		for j, name := range a.GetHostnames() {
			v.named(fmt.Sprintf("%s.hostnames[%d]", at, j), name, names.DNSSubdomain)
		}
	}
}

func (v *violations) dnsConfig(spec *objectv1.PodSpec) {
	cfg := spec.GetDnsConfig()
	servers := cfg.GetNameservers()
	if spec.GetDnsPolicy() == "None" && len(servers) == 0 {
		v.add("spec.dnsConfig.nameservers", "", "must provide at least one DNS nameserver when dnsPolicy is None")
	}
	if len(servers) > maxNameservers {
		v.add("spec.dnsConfig.nameservers", strings.Join(servers, ","), "must not have more than %d nameservers", maxNameservers)
	}
	for i, s := range servers {
		v.address(fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), s)
	}
	searches := cfg.GetSearches()
	if len(searches) > maxSearches {
		v.add("spec.dnsConfig.searches", "", "must not have more than %d search paths", maxSearches)
	}
	if joined := strings.Join(searches, " "); len(joined) > maxSearchChars {
		v.add("spec.dnsConfig.searches", "", "must not have more than %d characters (including spaces) in the search list", maxSearchChars)
	}
	for i, s := range searches {
		if s == "." {
			continue
		}
		if rule := names.DNSSubdomain(strings.TrimSuffix(s, ".")); rule != "" {
			v.add(fmt.Sprintf("spec.dnsConfig.searches[%d]", i), s, "%s", rule)
		}
	}
	for i, o := range cfg.GetOptions() {
		if o.GetName() == "" {
			v.add(fmt.Sprintf("spec.dnsConfig.options[%d]", i), "", "must not be empty: a name is required")
		}
	}
}

func (v *violations) tolerations(list []*objectv1.Toleration) {
	for i, t := range list {
		at := fmt.Sprintf("spec.tolerations[%d]", i)
		op := t.GetOperator()
		if t.GetKey() != "" {
			v.qualified(at+".key", t.GetKey())
		} else if op != "Exists" {
			v.add(at+".operator", op, "must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		switch op {
		case "", "Equal":
			v.named(at+".value", t.GetValue(), names.LabelValue)
		case "Exists":
			if t.GetValue() != "" {
				v.add(at+".value", t.GetValue(), "must be empty when `operator` is Exists")
			}
		default:
			v.add(at+".operator", op, "must be one of Equal, Exists")
		}
		if t.GetEffect() != "" {
			v.oneOf(at+".effect", t.GetEffect(), "NoSchedule", "PreferNoSchedule", "NoExecute")
		}
		if t.TolerationSeconds != nil && t.GetEffect() != "NoExecute" {
			v.add(at+".effect", t.GetEffect(), "must be NoExecute when `tolerationSeconds` is set")
		}
	}
}

func (v *violations) gates(spec *objectv1.PodSpec) {
	seen := map[string]bool{}
	for i, g := range spec.GetSchedulingGates() {
		at := fmt.Sprintf("spec.schedulingGates[%d]", i)
		v.qualified(at+".name", g.GetName())
		if seen[g.GetName()] {
			v.add(at, g.GetName(), "must be unique")
		}
		seen[g.GetName()] = true
	}
	if len(seen) > 0 && spec.GetNodeName() != "" {
		v.add("spec.nodeName", spec.GetNodeName(), "cannot be set until all schedulingGates have been cleared")
	}
}

// ValidatePodStatus returns the rules that a reported status breaks. Whether its addresses are the node's to give is not
// judged here.
func ValidatePodStatus(o *objectv1.Pod) []errs.Violation {
	var v violations
	s := o.GetStatus()
	v.oneOf("status.phase", s.GetPhase(), Pending, Running, Succeeded, Failed, Unknown)
	types := map[string]bool{}
	for i, c := range s.GetConditions() {
		v.condition(fmt.Sprintf("status.conditions[%d]", i), c.GetType(), c.GetStatus(), types)
	}
	var pods, hosts []string
	for _, p := range s.GetPodIps() {
		pods = append(pods, p.GetIp())
	}
	for _, h := range s.GetHostIps() {
		hosts = append(hosts, h.GetIp())
	}
	v.statusAddresses("podIP", s.GetPodIp(), pods)
	v.statusAddresses("hostIP", s.GetHostIp(), hosts)
	return v
}

// statusAddresses checks a list of addresses and the single field that repeats its first.
func (v *violations) statusAddresses(field, first string, all []string) {
	families := map[bool]bool{}
	for i, text := range all {
		at := "status." + field + "s[" + strconv.Itoa(i) + "].ip"
		if !v.address(at, text) {
			continue
		}
		is4 := netip.MustParseAddr(text).Is4()
		if families[is4] {
			v.add(at, text, "may specify no more than one IP for each IP family")
		}
		families[is4] = true
	}
	if first != "" && (len(all) == 0 || all[0] != first) || first == "" && len(all) > 0 {
		v.add("status."+field, first, "must be the first of %ss", field)
	}
}

// CarryPodStatus keeps in a reported status what the agent does not know of: the quality of service class, and that the Pod
// was scheduled, unless the agent says so itself.
func CarryPodStatus(o, old *objectv1.Pod) {
	const scheduled = "PodScheduled"
	if o.Status == nil {
		o.Status = &objectv1.PodStatus{}
	}
	o.Status.QosClass = qosClass(old.GetSpec())
	is := func(c *objectv1.PodCondition) bool { return c.GetType() == scheduled }
	if slices.ContainsFunc(o.Status.GetConditions(), is) {
		return
	}
	if i := slices.IndexFunc(old.GetStatus().GetConditions(), is); i >= 0 {
		o.Status.Conditions = append(slices.Clip(o.Status.Conditions), old.Status.Conditions[i])
	}
}
