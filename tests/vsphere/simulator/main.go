// A simulated vCenter, or ESXi host, on Debian's govmomi library. It prints one line of JSON when it is ready, and ends
// on SIGTERM and when its standard input closes, which is what the end of its parent does; it leaves no file behind.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // REST: tags and categories
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type datastore struct {
	Datacenter string `json:"datacenter"`
	Name       string `json:"name"`
	Moref      string `json:"moref"`
	Folder     string `json:"folder"`
}

// newcomers completes what the library leaves out when it makes an object.
type newcomers struct{}

func (newcomers) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Newcomers", Value: "newcomers"}
}

// UpdateObject unties snapshots from files: the library numbers the files of a VM anew, and would remove with a snapshot
// whatever file, also a disk, has its number by then.
func (newcomers) UpdateObject(item mo.Reference, _ []types.PropertyChange) {
	if vm, ok := item.(*mo.VirtualMachine); ok && vm.LayoutEx != nil {
		for i := range vm.LayoutEx.Snapshot {
			vm.LayoutEx.Snapshot[i].DataKey = -1
		}
	}
}

func (newcomers) RemoveObject(types.ManagedObjectReference) {}

func (newcomers) PutObject(item mo.Reference) {
	switch object := item.(type) {
	case *simulator.VirtualMachine:
		object.Capability.ChangeTrackingSupported = types.NewBool(true)
		object.Capability.SnapshotOperationsSupported = true
		object.Runtime.ConsolidationNeeded = types.NewBool(false)
		object.Summary.Runtime.ConsolidationNeeded = types.NewBool(false)
	case *simulator.VirtualMachineSnapshot:
		// The library shares the list of devices with the VM, and alters it in place at every reconfiguration.
		devices := object.Config.Hardware.Device
		object.Config.Hardware.Device = append([]types.BaseVirtualDevice(nil), devices...)
	}
}

func datastores() []datastore {
	found := []datastore{}
	for _, entity := range simulator.Map.All("Datastore") {
		store := entity.(*simulator.Datastore)
		center := simulator.Map.Get(*store.Parent)
		for center.Reference().Type != "Datacenter" {
			center = simulator.Map.Get(*center.(mo.Entity).Entity().Parent)
		}
		found = append(found, datastore{
			Datacenter: center.(mo.Entity).Entity().Name,
			Name:       store.Name,
			Moref:      store.Self.Value,
			Folder:     store.Info.GetDatastoreInfo().Url,
		})
	}
	return found
}

func main() {
	esx := flag.Bool("esx", false, "a single ESXi host instead of a vCenter")
	listen := flag.String("listen", "127.0.0.1:0", "address to listen at")
	user := flag.String("user", "", "the only user that may log in")
	password := flag.String("password", "", "the password that is demanded")
	secure := flag.Bool("tls", false, "speak TLS")
	datacenters := flag.Int("datacenters", 1, "datacenters, each with one cluster")
	hosts := flag.Int("hosts", 1, "hosts in each cluster")
	vms := flag.Int("vms", 2, "VMs in each cluster, or on the ESXi host")
	stores := flag.Int("datastores", 1, "datastores in each datacenter")
	autostart := flag.Bool("autostart", true, "power the VMs on")
	flag.Parse()

	ended := make(chan os.Signal, 2)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended <- syscall.SIGTERM
	}()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	} else {
		model.Datacenter, model.Cluster, model.ClusterHost, model.Host = *datacenters, 1, *hosts, 0
	}
	model.Machine, model.Datastore, model.Autostart = *vms, *stores, *autostart
	defer model.Remove()
	if err := model.Create(); err != nil {
		model.Remove()
		log.Fatal(err)
	}
	for _, vm := range simulator.Map.All("VirtualMachine") {
		newcomers{}.PutObject(vm)
	}
	simulator.Map.AddHandler(newcomers{})

	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	model.Service.RegisterEndpoints = true
	if *secure {
		model.Service.TLS = new(tls.Config)
	}
	server := model.Service.NewServer()
	address := url.URL{Scheme: server.URL.Scheme, Host: server.URL.Host, Path: server.URL.Path}
	err := json.NewEncoder(os.Stdout).Encode(map[string]interface{}{"url": address.String(), "datastores": datastores()})
	if err != nil {
		log.Print(err)
		return
	}
	// No orderly close of the server: it would wait for clients that only wait for updates.
	<-ended
}
